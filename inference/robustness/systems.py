"""A system recognises every utterance under every condition; results are kept, and taken up again by a resumed run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lact_asr.atomic_files import write_json
from lact_asr.checkpoint import load_checkpoint
from lact_asr.devices import choose_device
from lact_asr.inference.arguments import ignored_flags
from lact_asr.inference.evaluation import Utterance, evaluate
from lact_asr.inference.inference_setup import fill_in_defaults, make_recogniser, results_settings
from lact_asr.inference.recogniser import Recogniser
from lact_asr.inference.results.results_file import ResultsWriter
from lact_asr.inference.results.utterance_result import UtteranceResult
from lact_asr.inference.robustness.arguments import System, file_name
from lact_asr.inference.robustness.peak_memory import PeakMemory, memory_in_use, release_freed_memory
from lact_asr.inference.ttt.from_flags import describe_default_loss


class Outcome(NamedTuple):
    """A system under a condition: a result for each utterance, and the memory that it took at its peak (None: not measured)."""

    results: list[UtteranceResult]
    peak_memory_bytes: int | None


def set_up(system: System) -> tuple[Recogniser, argparse.Namespace]:
    """The system's recogniser, and its flags with all defaults filled in.

    Raises:
        InputError: no such checkpoint, or flags or a language model that do not fit it.
    """
    checkpoint = load_checkpoint(system.arguments.checkpoint)
    filled = fill_in_defaults(system.arguments, checkpoint.model.config)
    return make_recogniser(filled, checkpoint), filled


def check(system: System) -> list[str]:
    """Set a system up and let it go; raises as `set_up`, and returns what its user should know of it."""
    recogniser, _ = set_up(system)
    notes = describe_default_loss(system.arguments, recogniser.model.config)
    if ignored := ignored_flags(system.arguments):
        notes.append(f"Without --use_ttt nothing is adapted; without effect: {', '.join(ignored)}.")
    return notes


def run_system(
    system: System, conditions: Mapping[str, Sequence[Utterance]], settings: Mapping, run: argparse.Namespace
) -> dict[str, Outcome]:
    """Recognise all utterances under one condition after the other.

    Args:
        system: is loaded here and let go at the end, so that each system's memory is its own.
        conditions: by name, the utterances as they sound under it.
        settings: what decides the results apart from system and condition.
        run: the run's flags (output_dir, batch_size, resume).

    Returns:
        Outcomes by condition.
    """
    folder = run.output_dir / "results" / file_name(system.name)
    peaks = _PeakFile(folder / "peak_memory.json", resume=run.resume)
    release_freed_memory()
    device = choose_device(system.arguments.device)
    memory_before = memory_in_use(device)
    recogniser, filled = set_up(system)
    outcomes = {}
    for condition, utterances in conditions.items():
        path = folder / f"{file_name(condition)}.jsonl"
        decisive = {**results_settings(filled), **settings, "condition": condition}
        with ResultsWriter(path, decisive, resume=run.resume) as writer, PeakMemory(device) as memory:
            finished = all(utterance.id in writer.done for utterance in utterances)
            results = evaluate(
                utterances, recogniser, writer, run.batch_size, f"{system.name}, {condition}",
                in_order=recogniser.order_matters,
            )  # fmt: skip
        if not finished:
            peaks.raise_to(condition, memory.peak - memory_before)
        outcomes[condition] = Outcome(results, peaks.bytes.get(condition))
    return outcomes


class _PeakFile:
    """Peak memory by condition, kept beside the results: a resumed run cannot measure again what is finished."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.bytes: dict[str, int] = json.loads(path.read_text()) if resume and path.exists() else {}

    def raise_to(self, condition: str, peak_bytes: int) -> None:
        self.bytes[condition] = max(self.bytes.get(condition, 0), peak_bytes)
        write_json(self.path, self.bytes)
