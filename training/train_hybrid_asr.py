"""Train a hybrid LaCT + Wav2Vec2 model with CTC: ``python training/train_hybrid_asr.py --help``."""

from __future__ import annotations

import contextlib
import errno
import sys
from pathlib import Path

from lact_asr.errors import InputError, exit_on_input_error
from lact_asr.training.arguments import parse_arguments

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Parse, set up, train, report; returns the exit code."""
    arguments = parse_arguments(argv)
    # Imported after parsing: --help and mistyped flags answer at once.
    from lact_asr.locks import alone_in
    from lact_asr.training.checkpoint_rotation import agreed_by_all, checkpoints_to_resume_from
    from lact_asr.training.run_log import prepare_output_dir
    from lact_asr.training.run_setup import make_accelerator, make_trainer, score_test_subset

    accelerator = make_accelerator(arguments)

    def resume_from() -> list[Path]:
        return agreed_by_all(lambda: checkpoints_to_resume_from(arguments.resume_from_checkpoint, arguments.output_dir))

    resume_from()  # a mistake makes no folder
    prepare_output_dir(arguments.output_dir)
    try:
        with alone_in(arguments.output_dir) if accelerator.is_main_process else contextlib.nullcontext():
            # Found again: the run before may have been saving until it left the folder.
            trainer = make_trainer(arguments, accelerator, resume_from())
            exit_code = trainer.train()
            if exit_code == 0 and accelerator.is_main_process:
                score_test_subset(arguments, accelerator)
            if trainer.log is not None:
                trainer.log.close()
            if exit_code != 0:  # a launcher ends the others as soon as one leaves so, be trackers still sending
                accelerator.wait_for_everyone()
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise InputError(
            f"{arguments.output_dir} cannot be written to ({error.strerror}); what it holds is whole: make room, and go on "
            "with --resume_from_checkpoint auto."
        ) from None
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
