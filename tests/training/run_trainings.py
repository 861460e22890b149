"""Run training commands, a JSON list of lists, one after another: torchrun starts this in each process, which saves the imports of all but one."""

import json
import os
import sys
import time

from accelerate.state import AcceleratorState, GradientState

from lact_asr.training import stop_request, trainer
from lact_asr.training.train_hybrid_asr import main


def write_slowly(seconds: float) -> None:
    """As on storage where a checkpoint takes longer than a second signal is tolerated."""
    write = trainer.save_training_state

    def save_training_state(*state, **more_state) -> None:
        time.sleep(seconds)
        write(*state, **more_state)

    trainer.save_training_state, stop_request.SECONDS_OF_REPEATS = save_training_state, seconds / 20


if __name__ == "__main__":
    if "SECONDS_OF_A_SAVE" in os.environ:
        write_slowly(float(os.environ["SECONDS_OF_A_SAVE"]))
    for command in json.loads(sys.argv[1]):
        if exit_code := main(command):
            sys.exit(exit_code)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
