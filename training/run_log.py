"""What a run writes down while it goes: one JSON line for each event, TensorBoard scalars, and a description of itself."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from lact_asr.checkout import git_commit
from lact_asr.errors import InputError

REPORTED_PACKAGES = ("lact-asr", "torch", "transformers", "accelerate", "lhotse", "numpy")


class RunLog:
    """Appends to ``training_log.jsonl`` and to TensorBoard files of a run's folder."""

    def __init__(self, output_dir: Path) -> None:
        self._file = open(output_dir / "training_log.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._tensorboard = SummaryWriter(str(output_dir / "tensorboard"))

    def write(self, event: str, step: int, values: dict[str, float | int | str | None]) -> None:
        """Write one event; numbers also go to TensorBoard as ``event/name``. What is not finite is written as null."""
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        line = {"event": event, "step": step, "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._tensorboard.add_scalar(f"{event}/{name}", value, step)

    def close(self) -> None:
        """Flush both."""
        self._file.close()
        self._tensorboard.close()


def prepare_output_dir(output_dir: Path) -> None:
    """Make the run's folder.

    Raises:
        InputError: it cannot be made or written to.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        probe = output_dir / f".write_probe.{os.getpid()}.tmp"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise InputError(f"The output folder {output_dir} is not writable: {error.strerror}.") from None


def describe_run(arguments: dict, model_sizes: dict) -> dict:
    """What somebody needs to repeat the run: command, arguments, versions, commit, machine, sizes."""
    return {
        "command": [sys.executable, *sys.argv],
        "arguments": arguments,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in REPORTED_PACKAGES},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"),
        "threads": torch.get_num_threads(),
        "parameters": model_sizes,
    }
