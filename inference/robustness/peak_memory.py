"""How much memory a piece of work takes at its peak."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from types import TracebackType

import torch

_SECONDS_BETWEEN_SAMPLES = 0.01


def memory_in_use(device: torch.device) -> int:
    """Bytes that PyTorch has allocated on a GPU, or that are resident of this process."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _resident_bytes()


def _resident_bytes() -> int:
    import psutil  # late: GPU machines may lack it, and need it not

    return psutil.Process().memory_info().rss


def release_freed_memory() -> None:
    """Hand freed memory back to the system, so that what an earlier system left does not hide what the next one takes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc's; others have none
        libc.malloc_trim(0)


class PeakMemory:
    """The highest `memory_in_use` while a block runs: exact on a GPU, sampled a hundred times a second on a CPU.

    Use as a context manager; ``peak`` holds bytes afterwards.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.peak = device, 0
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self.peak = memory_in_use(self.device)
            self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self._stop.set()
            self._sampler.join()

    def _sample(self) -> None:
        while not self._stop.wait(_SECONDS_BETWEEN_SAMPLES):
            self.peak = max(self.peak, _resident_bytes())
