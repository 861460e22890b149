"""Where a run's numbers can be watched besides its own log: TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from lact_asr.errors import InputError


class Tracker(Protocol):
    """Takes numbers as they come; one whose methods raise anything gets no more of them.

    Attributes:
        package: that must be installed.
    """

    package: str

    def write(self, values: dict[str, float], step: int) -> None:
        """Numbers by name, ``train/ctc_loss`` for example, at an optimiser step."""

    def flush(self) -> None:
        """Bring to the disk what was written."""

    def close(self) -> None:
        """Flush, and end."""


class TensorBoard:
    """Files in the run's folder ``tensorboard``; a resumed run hides what was written after its checkpoint."""

    package = "tensorboard"

    def __init__(self, output_dir: Path, description: dict, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(output_dir / "tensorboard"), purge_step=first_step)

    def write(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project "lact-asr" named after the folder, its files below ``wandb`` there; a resumed run becomes another one of its group.

    Raises:
        InputError: it cannot start, for want of an account or a connection.
    """

    package = "wandb"

    def __init__(self, output_dir: Path, description: dict, first_step: int) -> None:
        import wandb

        folder = output_dir.resolve()
        try:
            self._run = wandb.init(
                project="lact-asr", name=folder.name, group=folder.name, dir=str(folder), config=description
            )
        except wandb.Error as error:
            raise InputError(
                f"Weights & Biases cannot start: {' '.join(str(error).split())[:200]} (WANDB_MODE=offline needs no account)"
            ) from None

    def write(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def flush(self) -> None:
        """Its own process writes, at once."""

    def close(self) -> None:
        self._run.finish()


TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def check_trackers(names: Iterable[str]) -> None:
    """Raises:
    InputError: one of them is not installed.
    """
    for name in names:
        package = TRACKERS[name].package
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"--trackers {name} needs the package {package}: pip install {package}, or train with --trackers none, "
                "which leaves training_log.jsonl"
            )


def start_trackers(names: Iterable[str], output_dir: Path, description: dict, first_step: int = 1) -> list[Tracker]:
    """Trackers by name.

    Args:
        names: keys of `TRACKERS`.
        output_dir: the run's folder.
        description: content of ``run.json``.
        first_step: of the numbers to come; what is there of this step and later ones is from a process that was killed.
    """
    return [TRACKERS[name](output_dir, description, first_step) for name in names]
