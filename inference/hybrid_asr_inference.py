"""Transcribe recordings or score a corpus: ``python inference/hybrid_asr_inference.py --help``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from lact_asr.errors import InputError, exit_on_input_error, first_names
from lact_asr.inference.arguments import ignored_flags, parse_arguments
from lact_asr.inference.transcript_formats.formats import (
    check_destination,
    file_names,
    makes_a_folder,
    refuse_to_overwrite,
    timed_transcripts,
    write_transcripts,
)

if TYPE_CHECKING:
    from lact_asr.data.corpora import Corpus
    from lact_asr.inference.evaluation import Utterance
    from lact_asr.inference.results.results_file import ResultsWriter
    from lact_asr.inference.results.utterance_result import UtteranceResult


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Parse, recognise, report; returns the exit code."""
    arguments = parse_arguments(argv)
    # Imported after parsing: --help and mistyped flags answer at once.
    from lact_asr.checkpoint import load_checkpoint
    from lact_asr.inference.evaluation import evaluate
    from lact_asr.inference.inference_setup import decoding_pool, fill_in_defaults, make_recogniser
    from lact_asr.inference.long_audio.long_recordings import Cutting, PiecewiseRecogniser
    from lact_asr.inference.ttt.from_flags import describe_default_loss
    from lact_asr.inference.utterances import list_utterances

    utterances, corpus = list_utterances(arguments)
    refuse_to_overwrite(arguments.output, [*(arguments.audio_file or ()), arguments.checkpoint, arguments.lm_path])
    if arguments.output_format is not None:
        check_destination(arguments.output_format, arguments.output, [utterance.id for utterance in utterances])
    if len(utterances) == 1:
        utterances = [_read_now(utterances[0])]
    checkpoint = load_checkpoint(arguments.checkpoint)
    path = _results_path(arguments)
    notes = describe_default_loss(arguments, checkpoint.model.config)
    arguments = fill_in_defaults(arguments, checkpoint.model.config)
    recogniser = make_recogniser(arguments, checkpoint)
    cutting = Cutting(arguments.segment_seconds, arguments.pause_seconds, arguments.voice_activity)
    ahead = arguments.decoding_processes
    recognise = PiecewiseRecogniser(recogniser.start, cutting, arguments.batch_size, ahead, recogniser.memory)
    with _results_writer(path, arguments, len(utterances)) as writer, decoding_pool(arguments, checkpoint) as pool:
        if pool is not None:
            recogniser.decoder = pool
        results = evaluate(
            utterances, recognise, writer, arguments.batch_size, in_order=recogniser.order_matters, ahead=ahead,
            on_result=_write_at_once(arguments, [utterance.id for utterance in utterances]),
        )  # fmt: skip
    if all(result.failed for result in results):
        raise InputError(
            results[0].message if len(results) == 1 else f"None of the {len(results)} recordings could be transcribed."
        )
    _report_results(results, corpus, arguments)
    paths = [] if path is None else [path]
    if arguments.output_format is not None and arguments.output not in (None, path):
        paths += write_transcripts(
            timed_transcripts(results, arguments.output_format), arguments.output_format, arguments.output,
            file_names([result.id for result in results]),
        )  # fmt: skip
    _report_run(results, arguments, recogniser.refusals, paths, notes)
    return 0


def _write_at_once(arguments: argparse.Namespace, ids: list[str]) -> Callable[[UtteranceResult], None]:
    """Writes a result's file as soon as it is there, where each recording has one: a long job that stops has those that were done."""
    if arguments.output_format is None or not makes_a_folder(arguments.output_format, arguments.output):
        return lambda result: None
    name, folder, names = arguments.output_format, arguments.output, file_names(ids)
    return lambda result: write_transcripts(timed_transcripts([result], name), name, folder, names)


def _results_writer(
    path: Path | None, arguments: argparse.Namespace, expected: int
) -> AbstractContextManager[ResultsWriter | None]:
    """Of the results file, if there is one."""
    from lact_asr.inference.inference_setup import results_settings
    from lact_asr.inference.results.results_file import ResultsWriter

    if path is None:
        return nullcontext()
    word_times = arguments.word_times or arguments.output_format not in (None, "jsonl")
    overwrite = arguments.overwrite or path == arguments.output  # a name that was not given is easily another run's
    settings = results_settings(arguments)
    return ResultsWriter(
        path, settings, resume=arguments.resume, word_times=word_times, overwrite=overwrite, expected=expected
    )


def _read_now(utterance: Utterance) -> Utterance:
    """A single recording is read before the model is loaded: a mistyped name is answered at once, in one line."""
    samples = utterance.read()
    return dataclasses.replace(utterance, read=lambda: samples)


def _results_path(arguments: argparse.Namespace) -> Path | None:
    """Where results go: --output, or for a corpus subset a file beside the checkpoint, or nowhere."""
    if arguments.output is not None and arguments.output_format in (None, "jsonl"):
        return arguments.output
    if arguments.data_dir is None:
        return None
    from lact_asr.inference.companions import checkpoint_folder

    parts = ["results", Path(arguments.subset).stem, "greedy" if arguments.greedy else f"beam{arguments.beam_size}"]
    return checkpoint_folder(arguments.checkpoint) / f"{'_'.join(parts + ['ttt'] * arguments.use_ttt)}.jsonl"


def _report_results(results: list[UtteranceResult], corpus: Corpus | None, arguments: argparse.Namespace) -> None:
    """On stdout: transcripts of files, or what was left out of a corpus and its error rates."""
    from lact_asr.inference.results.summary import format_table, summarise

    if corpus is not None:
        if corpus.problems:
            print(corpus.report())
        print(format_table({corpus.name: summarise(results)}))
        return
    if arguments.output is None and arguments.output_format == "jsonl":
        sys.stdout.writelines(result.json_line(arguments.word_times) for result in results)
        return
    if arguments.output is None and arguments.output_format is not None:
        write_transcripts(timed_transcripts(results, arguments.output_format), arguments.output_format, None)
        return
    for result in results:
        if not result.failed:
            print(f"{result.id}\t{result.hypothesis}")
            for number, alternative in enumerate(result.alternatives, start=2):
                print(f"{result.id} ({number})\t{alternative}")
            if result.hypothesis_without_ttt is not None:
                print(f"{result.id} (without TTT)\t{result.hypothesis_without_ttt}")


def _report_run(
    results: list[UtteranceResult],
    arguments: argparse.Namespace,
    refusals: dict[str, int],
    paths: list[Path],
    notes: list[str],
) -> None:
    """On stderr, so that stdout holds results alone: how they came about and where they are."""
    from lact_asr.inference.inference_setup import describe_recogniser

    lines = [describe_recogniser(arguments), *notes]
    if failed := [result.id for result in results if result.failed]:
        lines.append(f"{len(failed):,} of {len(results):,} recordings could not be transcribed: {first_names(failed)}.")
    if silent := sum(result.hypothesis == "" for result in results):
        lines.append(f"No speech was recognised in {silent} of {len(results)} recordings.")
    for reason, count in refusals.items():
        left = "1 utterance as it was" if count == 1 else f"{count} utterances as they were"
        lines.append(f"TTT left {left}: {reason}{_limit(reason, arguments)}.")
    if ignored := ignored_flags(arguments):
        lines.append(f"Without --use_ttt nothing was adapted; without effect: {', '.join(ignored)}.")
    if paths:
        lines.append(f"Results: {', '.join(map(str, paths[:3]))}{' …' * (len(paths) > 3)}")
    print("\n".join(lines), file=sys.stderr)


def _limit(reason: str, arguments: argparse.Namespace) -> str:
    """The flag whose value was the reason, in brackets; nothing where there is none, as of a recipe's own margin."""
    from lact_asr.inference.ttt.safeguards import TOO_UNCERTAIN

    recipe = arguments.ttt_recipe
    limit = min(stage.entropy_limit for stage in recipe.stages) if recipe is not None else arguments.ttt_max_entropy
    return f" (above --ttt_max_entropy {limit:g})" if reason == TOO_UNCERTAIN and limit < 1 else ""


if __name__ == "__main__":
    sys.exit(main())
