"""Run training commands, a JSON list of lists, one after another: torchrun starts this in each process, which saves the imports of all but one."""

import json
import sys

from accelerate.state import AcceleratorState, GradientState

from lact_asr.training.train_hybrid_asr import main

if __name__ == "__main__":
    for command in json.loads(sys.argv[1]):
        if exit_code := main(command):
            sys.exit(exit_code)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
