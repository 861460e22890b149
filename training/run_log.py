"""What a run writes down while it goes: one JSON line for each event, numbers for trackers, and a description of itself."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lact_asr.checkout import git_commit, installed_version
from lact_asr.errors import InputError, warn
from lact_asr.training.trackers import Tracker
from lact_asr.training.training_state import Progress

LOG_NAME = "training_log.jsonl"
REPORTED_PACKAGES = ("lact-asr", "torch", "transformers", "accelerate", "lhotse", "numpy")


class RunLog:
    """Writes ``training_log.jsonl`` of a run's folder, and tells the trackers.

    A line that finds no room on the disk is written with a later one; a tracker that fails, whatever the reason, ends:
    it shows nothing but these lines.

    Args:
        output_dir: of the run.
        trackers: get all numbers.
        resumed: where the run goes on: what was logged after that is cut off, since it comes again. None for a new run,
            which starts an empty log.
    """

    def __init__(self, output_dir: Path, trackers: Sequence[Tracker] = (), resumed: Progress | None = None) -> None:
        path = output_dir / LOG_NAME
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        self._file.truncate(0 if resumed is None else _bytes_until(resumed, path))
        self._unwritten = b""
        self._trackers = list(trackers)

    def write(self, event: str, step: int, values: dict[str, object]) -> None:
        """Write one event; numbers also go to trackers as ``event/name``. What is not finite is written as null."""
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        line = {"event": event, "step": step, "time": round(time.time(), 3), **values}
        self._unwritten += json.dumps(line).encode() + b"\n"
        try:
            self._write_lines()
        except OSError as error:
            warn(f"a line of the log could not be written ({error.strerror}); it is tried again with the next.")
        numbers = {f"{event}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
        self._tell_trackers(lambda tracker: tracker.write(numbers, step))

    def flush(self) -> None:
        """Bring everything to the disk: a checkpoint must not know of more than the log does.

        Raises:
            OSError: lines of the log cannot be written.
        """
        self._write_lines()
        os.fsync(self._file.fileno())
        self._tell_trackers(lambda tracker: tracker.flush())

    def close(self) -> None:
        """Flush and close; raises as `flush` does."""
        self.flush()
        self._file.close()
        self._tell_trackers(lambda tracker: tracker.close())

    def _write_lines(self) -> None:
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def _tell_trackers(self, tell: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                tell(tracker)
            except Exception as error:  # whatever another package raises: what it shows is not worth a run
                self._trackers.remove(tracker)
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                warn(f"What {tracker.package} shows cannot be written any more ({reason}); {LOG_NAME} goes on.")


def _bytes_until(resumed: Progress, log: Path) -> int:
    """Length of the log when the checkpoint was written; the half line where a run was killed is never part of it."""
    length = 0
    with open(log, "rb") as lines:
        for line in lines:
            try:
                later = _is_later(json.loads(line), resumed)
            except ValueError:
                break
            if later or not line.endswith(b"\n"):
                break
            length += len(line)
    return length


def _is_later(event: dict, resumed: Progress) -> bool:
    """Whether it was logged after the checkpoint; at the end of an epoch, the validation may come after that."""
    pending = event["event"] == "validation" and resumed.validated_step != resumed.step
    return event["step"] > resumed.step or (event["step"] == resumed.step and pending)


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


def earlier_starts(path: Path, description: dict) -> list[dict]:
    """The descriptions under which a resumed run was started before, oldest first, as far as they differ from the next one.

    Args:
        path: ``run.json`` as the last start left it; an unreadable one is as good as none.
        description: of the start that is under way.
    """
    try:
        last = json.loads(path.read_text(encoding="utf-8"))
        earlier = last.pop("earlier_starts", [])
    except (OSError, ValueError, AttributeError):
        return []
    comparable = json.loads(json.dumps(description, default=str))
    return earlier if last == comparable else [*earlier, last]


def describe_run(arguments: dict, model_sizes: dict) -> dict:
    """What somebody needs to repeat the run: command, arguments, versions, commit, machine, sizes."""
    return {
        "command": [sys.executable, *sys.argv],
        "arguments": arguments,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in REPORTED_PACKAGES},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"),
        "threads": torch.get_num_threads(),
        "parameters": model_sizes,
    }
