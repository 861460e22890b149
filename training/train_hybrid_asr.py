"""Train a hybrid LaCT + Wav2Vec2 model with CTC: ``python training/train_hybrid_asr.py --help``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lact_asr.errors import InputError, exit_on_input_error
from lact_asr.training.arguments import parse_arguments


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Parse, set up, train, report; returns the exit code."""
    arguments = parse_arguments(argv)
    # Imported after parsing: --help and mistyped flags answer at once.
    from lact_asr.training.run_log import prepare_output_dir
    from lact_asr.training.run_setup import make_accelerator, make_trainer, score_test_subset
    from lact_asr.training.trainer import LAST_CHECKPOINT

    resume_from = _resume_file(arguments, LAST_CHECKPOINT)
    prepare_output_dir(arguments.output_dir)
    accelerator = make_accelerator(arguments)
    trainer = make_trainer(arguments, accelerator, resume_from)
    exit_code = trainer.train()
    if exit_code == 0 and accelerator.is_main_process:
        score_test_subset(arguments, accelerator)
    if trainer.log is not None:
        trainer.log.close()
    return exit_code


def _resume_file(arguments: argparse.Namespace, default_name: str) -> Path | None:
    """The file to resume from, checked before anything slow starts."""
    wanted = arguments.resume_from_checkpoint
    if wanted is None:
        return None
    path = arguments.output_dir / default_name if wanted == "last" else Path(wanted)
    if path.is_dir():
        path = path / default_name
    if not path.is_file():
        raise InputError(f"There is no training state to resume from at {path}.")
    return path


if __name__ == "__main__":
    sys.exit(main())
