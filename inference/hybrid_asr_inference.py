"""Transcribe recordings or score a corpus: ``python inference/hybrid_asr_inference.py --help``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lact_asr.errors import InputError, exit_on_input_error
from lact_asr.inference.arguments import parse_arguments


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Parse, recognise, report; returns the exit code."""
    arguments = parse_arguments(argv)
    # Imported after parsing: --help and mistyped flags answer at once.
    from lact_asr.inference.evaluation import ResultsWriter, evaluate
    from lact_asr.inference.inference_setup import list_utterances, make_recogniser

    utterances, corpus = list_utterances(arguments)
    recogniser = make_recogniser(arguments)
    path = _results_path(arguments)
    if path is None:
        results = evaluate(utterances, recogniser)
    else:
        with ResultsWriter(path, _settings(arguments), resume=arguments.resume) as writer:
            results = evaluate(utterances, recogniser, writer)
    _report(results, corpus, recogniser, path)
    if all(result.failed for result in results):
        raise InputError(
            results[0].message if len(results) == 1 else f"None of the {len(results)} recordings could be transcribed."
        )
    return 0


def _results_path(arguments: argparse.Namespace) -> Path | None:
    """Where results go: --output, or for a corpus subset a file beside the checkpoint."""
    if arguments.output is not None or arguments.data_dir is None:
        return arguments.output
    from lact_asr.inference.inference_setup import checkpoint_folder

    parts = ["results", Path(arguments.subset).stem, "greedy" if arguments.greedy else f"beam{arguments.beam_size}"]
    return checkpoint_folder(arguments.checkpoint) / f"{'_'.join(parts + ['ttt'] * arguments.use_ttt)}.jsonl"


def _settings(arguments: argparse.Namespace) -> dict:
    """What decides the results: everything but where they go and on what they are computed."""
    left_out = ("output", "resume", "device", "move_emission_to_cpu", "max_samples")
    return {key: str(value) for key, value in vars(arguments).items() if key not in left_out}


def _report(results, corpus, recogniser, path: Path | None) -> None:
    """Transcripts of files, rates of a corpus, and what TTT left alone."""
    from lact_asr.inference.evaluation import format_table, summarise

    if corpus is None:
        for result in results:
            if not result.failed:
                print(f"{result.id}\t{result.hypothesis}")
    else:
        if corpus.problems:
            print(corpus.report())
        print(format_table({corpus.name: summarise(results)}))
    if path is not None and path.exists():
        print(f"Results: {path}", file=sys.stderr)
    for reason, count in recogniser.refusals.items():
        print(f"TTT left {count} of {len(results)} utterances as they were: {reason}.", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
