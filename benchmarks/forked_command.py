"""A command of this project in a process that a benchmark kills: forked from one that has imported what it needs, so it starts at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from lact_asr.errors import InputError

PATIENCE_SECONDS = 600.0


class ForkedCommand:
    """A running process of a script's ``main``.

    Attributes:
        name: for messages, as in "the training".
        output: the text file to which all that it prints is appended.
        process: the process itself.
    """

    def __init__(self, name: str, main: Callable[[list[str]], int], flags: list[str], output: Path) -> None:
        self.name, self.output = name, output
        self.process = multiprocessing.get_context("fork").Process(target=_run, args=(main, flags, output))
        self.process.start()

    def wait_for(self, happens: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
        """Look again and again until it happens, the time is over or the process has ended."""
        deadline = time.monotonic() + seconds
        while not happens() and time.monotonic() < deadline and self.process.is_alive():
            time.sleep(0.001)

    def kill(self) -> bool:
        """SIGKILL, which no process can catch; returns whether that is what ended it."""
        self.process.kill()
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL

    def finish(self) -> None:
        """Wait for its end.

        Raises:
            InputError: it failed.
        """
        self.process.join()
        if self.process.exitcode != 0:
            raise InputError(f"{self.name} failed, see {self.output}.")


def allow_forks() -> None:
    """Make this process one that can be forked: no threads of tqdm's or of a linear algebra library's."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    tqdm.monitor_interval = 0


def _run(main: Callable[[list[str]], int], flags: list[str], output: Path) -> None:
    # tqdm's lock is shared with the process that this one is forked from, which would wait for ever if this one is killed with it.
    tqdm.set_lock(threading.RLock())
    with output.open("ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.exit(main(flags))
