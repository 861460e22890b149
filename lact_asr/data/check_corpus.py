"""Find what is wrong with a corpus before a training run does: ``python -m lact_asr.data.check_corpus --help``."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from lact_asr.command_line import program_name
from lact_asr.errors import InputError, exit_on_input_error
from lact_asr.shared_flags import add_dataset_type, positive_int

if TYPE_CHECKING:
    from lact_asr.data.corpus_checks import CheckedSubset

DESCRIPTION = """Read every recording and every transcript of a corpus and say what is wrong with it.

Errors, which training would leave out or fall over: recordings that are missing, unreadable, truncated, silent or shorter
than their manifest says; transcripts that are missing, empty, hold digits or symbols, or are too long for the frames of
their audio; ids that are used twice. Warnings: other sampling rates than 16 kHz, several channels, too many or too few
characters a second. One sentence for each, the first of every kind here, all in report.json.

Writes to --output_dir: report.json, durations.png. Exit code 1 where there are errors."""


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Check each subset, print, write the report; returns the exit code."""
    arguments = _parse(argv)
    # Imported after parsing: --help and mistyped flags answer at once.
    from lact_asr.data.corpora import list_corpus
    from lact_asr.data.corpus_checks import check_subsets
    from lact_asr.data.corpus_report import duration_table, write_report

    processor, samples_per_frame = _model(arguments)
    listings = list_corpus(arguments.data_dir, arguments.subset, arguments.dataset_type)
    checked = check_subsets(listings, processor.tokenizer, samples_per_frame, arguments.num_workers)
    _print_problems(checked, arguments.max_shown)
    print(duration_table(checked))
    for path in write_report(checked, arguments.output_dir):
        print(path)
    return int(any(problem.is_error for subset in checked for problem in subset.problems))


def _model(arguments: argparse.Namespace):
    """The processor and the samples a frame of the model that is to be trained."""
    from lact_asr.checkpoint import load_hybrid_checkpoint
    from lact_asr.configuration_hybrid_asr import HybridASRConfig
    from lact_asr.processing_hybrid_asr import HybridASRProcessor
    from lact_asr.text import build_vocabulary

    if arguments.checkpoint is not None:
        checkpoint = load_hybrid_checkpoint(arguments.checkpoint)
        return checkpoint.processor, checkpoint.model.config.samples_per_frame
    config = (
        HybridASRConfig() if arguments.config_path is None else HybridASRConfig.from_json_file(arguments.config_path)
    )
    return HybridASRProcessor.from_vocabulary(build_vocabulary()), config.samples_per_frame


def _print_problems(checked: list[CheckedSubset], max_shown: int) -> None:
    """The first sentences of every kind of problem, the errors before the warnings."""
    problems = [problem for subset in checked for problem in subset.problems]
    kinds = Counter((not problem.is_error, problem.kind) for problem in problems)
    for (is_warning, kind), count in sorted(kinds.items()):
        print(f"{'warning' if is_warning else 'error'}: {count:,} × {kind}")
        sentences = [problem.sentence for problem in problems if problem.kind == kind]
        print("".join(f"  {sentence}\n" for sentence in sentences[:max_shown]), end="")
        if count > max_shown:
            print(f"  … and {count - max_shown:,} more")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program_name("python -m lact_asr.data.check_corpus"),
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="the corpus, as for training")
    parser.add_argument(
        "--subset", required=True, help="subset, or several with commas; train-960 is all of LibriSpeech"
    )
    add_dataset_type(parser)
    parser.add_argument("--output_dir", type=Path, required=True, help="where the report goes; made if needed")
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--config_path",
        type=Path,
        default=None,
        help="model configuration, for its frame rate (default: 80 frames a second)",
    )
    model.add_argument("--checkpoint", default=None, help="a trained model, for its frame rate and its vocabulary")
    parser.add_argument(
        "--num_workers",
        type=positive_int,
        default=os.cpu_count(),
        help="processes that read audio (default: one a core)",
    )
    parser.add_argument(
        "--max_shown",
        type=positive_int,
        default=3,
        help="sentences to print of each kind of problem (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    try:
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output_dir {arguments.output_dir} cannot be used: {error.strerror}.") from None
    return arguments


if __name__ == "__main__":
    sys.exit(main())
