"""Run training commands, a JSON list of lists, one after another: torchrun starts this in each process, which saves the imports of all but one."""

import json
import os
import sys
import time

from accelerate.state import AcceleratorState, GradientState

from lact_asr.data import corpora
from lact_asr.errors import InputError
from lact_asr.training import checkpoint_rotation, stop_request, trainer
from lact_asr.training.train_hybrid_asr import main


def write_slowly(seconds: float) -> None:
    """As on storage where a checkpoint takes longer than a second signal is tolerated."""
    write = trainer.save_training_state

    def save_training_state(*state, **more_state) -> None:
        time.sleep(seconds)
        write(*state, **more_state)

    trainer.save_training_state, stop_request.SECONDS_OF_REPEATS = save_training_state, seconds / 20


def fail_once(module, function: str, failure) -> None:
    """The first call of a module's function fails, as on a file system that does for a moment."""
    real, failures = getattr(module, function), [failure]
    setattr(module, function, lambda path: failures.pop()(path) if failures else real(path))


def refuse_checkpoint(path) -> None:
    raise InputError(f"{path} is damaged: it does not have its checksums.")


FAULTS = {
    "header": lambda: fail_once(
        corpora, "_header_or_sentence", lambda path: f"{path} cannot be read: Input/output error"
    ),
    "checkpoint": lambda: fail_once(checkpoint_rotation, "load_training_state", refuse_checkpoint),
}

if __name__ == "__main__":
    if "FAULT_OF_SECOND_PROCESS" in os.environ and os.environ["RANK"] == "1":
        FAULTS[os.environ["FAULT_OF_SECOND_PROCESS"]]()
    if "SECONDS_OF_A_SAVE" in os.environ:
        write_slowly(float(os.environ["SECONDS_OF_A_SAVE"]))
    for command in json.loads(sys.argv[1]):
        if exit_code := main(command):
            sys.exit(exit_code)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
