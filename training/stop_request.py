"""A polite stop: SIGTERM and Ctrl-C are noted, and training saves at the next step before it ends."""

from __future__ import annotations

import os
import signal
import time

# A launcher passes on what a batch system has sent to everyone, so that processes get the same request twice.
SECONDS_OF_REPEATS = 5.0


class Stopped(Exception):
    """Work that can be repeated was left because of a stop request."""


class StopRequest:
    """Context manager that catches SIGTERM and SIGINT; a signal more than `SECONDS_OF_REPEATS` after the first ends the process at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._first_seconds = 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        if self.signal_number is None:
            self.signal_number, self._first_seconds = number, time.monotonic()
        elif time.monotonic() - self._first_seconds > SECONDS_OF_REPEATS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def __bool__(self) -> bool:
        return self.signal_number is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal, as shells report it; 0 without a signal."""
        return 0 if self.signal_number is None else 128 + self.signal_number
