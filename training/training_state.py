"""Everything that training needs to go on where it stopped, in one file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lact_asr.checkpoint import load_torch_file, save_file_atomically
from lact_asr.errors import InputError

FORMAT = "lact-asr training state, version 1"


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        step: optimiser steps done.
        epoch: the epoch under way, from 0.
        batches_done: batches of this epoch that are done, on each process.
        best_wer, best_cer: of the best validation so far; None before the first.
        skipped_steps: steps left out because gradients were not finite.
        audio_seconds: seconds of audio trained on, all processes together.
    """

    step: int = 0
    epoch: int = 0
    batches_done: int = 0
    best_wer: float | None = None
    best_cer: float | None = None
    skipped_steps: int = 0
    audio_seconds: float = 0.0

    def is_better(self, wer: float, cer: float) -> bool:
        """Lower WER, or the same WER (all words wrong, early on) and lower CER."""
        return self.best_wer is None or (wer, cer) < (self.best_wer, self.best_cer)


def save_training_state(
    path: Path, *, model: dict, optimizer: dict, scheduler: dict, scaler: dict | None, random: list[dict],
    progress: Progress, vocabulary: dict[str, int],
) -> None:  # fmt: skip
    """Write the state atomically: state dictionaries, and the `random_state` of each process."""
    content = {
        "format": FORMAT,
        "model": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "scaler": scaler,
        "progress": asdict(progress),
        "random": random,
        "vocabulary": vocabulary,
    }
    save_file_atomically(content, path)


def load_training_state(path: Path, vocabulary: dict[str, int]) -> dict:
    """Read what `save_training_state` wrote.

    Raises:
        InputError: no such file, damaged, not a training state, or of another vocabulary.
    """
    content = load_torch_file(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is not a training state (last_checkpoint.pt); training cannot go on from it.")
    if content["vocabulary"] != vocabulary:
        raise InputError(
            f"The vocabulary in {path} differs from the one of this training data; they do not belong together."
        )
    return content


def random_state() -> dict[str, torch.Tensor]:
    """PyTorch's generators: dropout, LayerDrop and masks draw from them (data order and augmentation do not)."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, torch.Tensor]) -> None:
    """Undo what was drawn since `random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
