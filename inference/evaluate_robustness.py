"""How systems hold up when recordings differ from the training data: ``python -m lact_asr.inference.evaluate_robustness --help``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import sys
from typing import TYPE_CHECKING

from lact_asr.errors import InputError, exit_on_input_error
from lact_asr.inference.robustness.arguments import file_name, parse_arguments

if TYPE_CHECKING:
    from lact_asr.data.corruptions import Corruption
    from lact_asr.inference.evaluation import Utterance
    from lact_asr.inference.robustness.systems import Outcome


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Parse, recognise everything by every system, sum up, report; returns the exit code."""
    arguments = parse_arguments(argv)
    # Imported after parsing: --help and mistyped flags answer at once.
    from lact_asr.data.corpora import load_corpus
    from lact_asr.data.corruptions import make_corruptions
    from lact_asr.inference.robustness.groups import members
    from lact_asr.inference.robustness.summary import summary_rows
    from lact_asr.inference.utterances import corpus_utterances, spread_evenly
    from lact_asr.locks import alone_in

    try:
        from lact_asr.inference.robustness.report import describe_run, markdown, write_summary
        from lact_asr.inference.robustness.systems import check
    except ModuleNotFoundError as error:
        raise InputError(f'This command needs {error.name}: pip install "lact-asr[robustness]".') from None

    corpus = load_corpus(arguments.data_dir, arguments.subset, arguments.dataset_type)
    groups = members(arguments.groups, spread_evenly(list(corpus.cuts), arguments.max_samples))
    corruptions = make_corruptions(arguments.conditions, arguments.noise_dir, arguments.noise_colour, arguments.seed)
    # What does not fit is refused here, before hours of computing.
    notes = [f"{system.name}: {note}" for system in arguments.system for note in check(system)]
    if corpus.problems:
        print(corpus.report(), file=sys.stderr)
    for note in notes:
        print(note, file=sys.stderr)
    utterances = spread_evenly(corpus_utterances(corpus), arguments.max_samples)
    units = _speakers(utterances) if arguments.resample == "speaker" else None
    utterances = _read_once(utterances)
    with alone_in(arguments.output_dir):
        outcomes = _run_systems(arguments, utterances, corruptions)
        average = [condition.name for condition in arguments.average]
        rows = summary_rows(
            outcomes, groups, baseline=arguments.baseline, average=average, seed=arguments.seed, units=units
        )
        settings = describe_run(arguments, sys.argv[1:] if argv is None else argv, corpus.name)
        write_summary(rows, settings, arguments.output_dir)
    print(markdown(rows))
    print(f"Report: {arguments.output_dir / 'report.html'}", file=sys.stderr)
    return 0


def _speakers(utterances: list[Utterance]) -> list[str]:
    speakers = [utterance.speaker for utterance in utterances]
    if None in speakers:
        raise InputError("--resample speaker needs a corpus that names the speaker of every utterance.")
    if len(set(speakers)) == 1:
        raise InputError("--resample speaker needs several speakers; these utterances are of one.")
    return speakers


def _read_once(utterances: list[Utterance]) -> list[Utterance]:
    """The same utterances with their samples in memory, where every system finds them under every condition."""
    from tqdm import tqdm

    kept = [dataclasses.replace(utterance, read=functools.cache(utterance.read)) for utterance in utterances]
    for utterance in tqdm(kept, "reading", unit="utterance", mininterval=1.0):
        with contextlib.suppress(InputError):  # said, and counted, when a system is to recognise it
            utterance.read()
    return kept


def _run_systems(
    arguments: argparse.Namespace, utterances: list[Utterance], corruptions: dict[str, Corruption]
) -> dict[str, dict[str, Outcome]]:
    """Outcomes by system and condition; the corruptions' manifests are written on the way."""
    from lact_asr.inference.robustness.corrupted_utterances import CorruptionManifest, corrupted_utterances
    from lact_asr.inference.robustness.systems import run_system

    folder = arguments.output_dir / "corruptions"
    folder.mkdir(exist_ok=True)
    manifests = {
        name: CorruptionManifest(folder / f"{file_name(name)}.jsonl", resume=arguments.resume) for name in corruptions
    }
    conditions = {
        name: corrupted_utterances(utterances, name, corruption, manifests[name], arguments.seed)
        for name, corruption in corruptions.items()
    }
    noise = str(arguments.noise_dir or arguments.noise_colour)
    settings = {"corruption_seed": arguments.seed, "noise": noise, "max_samples": arguments.max_samples}
    outcomes = {system.name: run_system(system, conditions, settings, arguments) for system in arguments.system}
    for manifest in manifests.values():
        manifest.write()
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
