"""Everything that training needs to go on where it stopped, in one file."""

from __future__ import annotations

import random
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from lact_asr.checkpoint import TRAINING_STATE, load_torch_file, save_file_atomically
from lact_asr.errors import InputError

FORMAT = f"{TRAINING_STATE}, version 3"


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        step: optimiser steps done.
        epoch: the epoch under way, from 0.
        batches_done: batches of this epoch that are done, on each process.
        processes: how many these are; None in states of before they were noted.
        earlier_parts: what other numbers of processes did of this epoch, see `BatchPlan.rank_batches`.
        data_digest: `BatchPlan.digest` of the training data; None in older states.
        accumulated_batches: of each process, one step's; None in states of before they were noted.
        epochs_differ: in their steps, as processes, data, batches or accumulation have changed during the run.
        best_wer, best_cer: of the best validation so far; None before the first.
        best_utterances: how many the best validation was of.
        validated_step: after which the last validation was; None before the first.
        skipped_steps: steps left out because the loss or a gradient was not finite.
        skipped_in_a_row: of these, the last ones without another step between them.
        audio_seconds: seconds of audio trained on, all processes together.
    """

    step: int = 0
    epoch: int = 0
    batches_done: int = 0
    processes: int | None = None
    earlier_parts: list[list[int]] = field(default_factory=list)
    data_digest: str | None = None
    accumulated_batches: int | None = None
    epochs_differ: bool = False
    best_wer: float | None = None
    best_cer: float | None = None
    best_utterances: int = 0
    validated_step: int | None = None
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    audio_seconds: float = 0.0

    def position(self) -> dict:
        """For `SpeechDataLoader.load_state_dict`."""
        return {name: getattr(self, name) for name in ("epoch", "batches_done", "processes", "earlier_parts")}

    def take_position(self, state: dict) -> None:
        """Note a `SpeechDataLoader.state_dict`."""
        self.epoch, self.batches_done = state["epoch"], state["batches_done"]
        self.processes, self.earlier_parts = state["processes"], state["earlier_parts"]

    def is_better(self, wer: float, cer: float, utterances: int) -> bool:
        """Lower WER, or the same WER (all words wrong, early on) and lower CER; of no fewer utterances than the best so far."""
        if self.best_wer is None:
            return utterances > 0
        return utterances >= self.best_utterances and (wer, cer) < (self.best_wer, self.best_cer)


def save_training_state(
    path: Path, *, model: dict, optimizer: dict, scheduler: dict, scaler: dict | None, random: list[dict],
    recent: list[list[dict[str, float]]], progress: Progress, vocabulary: dict[str, int],
) -> None:  # fmt: skip
    """Write the state atomically: state dictionaries, and of each process the `random_state` and the numbers of batches that are not logged yet.

    Raises:
        OSError: it cannot be written.
    """
    content = {
        "format": FORMAT,
        "model": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "scaler": scaler,
        "progress": asdict(progress),
        "random": random,
        "recent": recent,
        "vocabulary": vocabulary,
    }
    save_file_atomically(content, path)


def load_training_state(path: Path) -> dict:
    """Read what `save_training_state` wrote.

    Raises:
        InputError: no such file, damaged, or not a training state.
    """
    content = load_torch_file(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is not a training state of this version; training cannot go on from it.")
    if not _has_its_checksums(path):
        raise InputError(f"{path} is damaged: it does not have its checksums.")
    if "processes_changed" in content.get("progress", {}):  # as it was called when processes were all that could change
        content["progress"]["epochs_differ"] = content["progress"].pop("processes_changed")
    return content


def _has_its_checksums(path: Path) -> bool:
    """PyTorch writes checksums and does not compare them."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False


def random_state() -> dict[str, object]:
    """The generators of PyTorch (dropout, LayerDrop and masks draw from it), Python and NumPy, as plain values.

    Data order and augmentation need none of them: they follow from the seed, the epoch and the utterance's name, in
    whatever process.
    """
    _, numpy_key, *numpy_rest = np.random.get_state()
    state = {"cpu": torch.get_rng_state(), "python": random.getstate(), "numpy": [numpy_key.tolist(), *numpy_rest]}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, object]) -> None:
    """Undo what was drawn since `random_state`."""
    torch.set_rng_state(state["cpu"])
    random.setstate(state["python"])
    np.random.set_state(("MT19937", *state["numpy"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
