"""Medians of repeated calls, peak memory, and what they were measured on."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lact_asr.checkout import git_commit


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, 20 % and 80 % quantile; and peak memory in bytes that the call needs above what was there."""

    median_seconds: float
    p20_seconds: float
    p80_seconds: float
    peak_bytes: int | None


def measure(
    call: Callable[[], object],
    device: torch.device,
    budget_seconds: float = 0.25,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time ``call`` after a warm-up, for about ``budget_seconds``; on a GPU with CUDA events and a cold L2 cache, on a CPU by ``clock``."""
    call()
    peak = None
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        from triton.testing import do_bench

        milliseconds = 1000.0 * budget_seconds
        p20, median, p80 = do_bench(call, warmup=milliseconds / 4, rep=milliseconds, quantiles=[0.2, 0.5, 0.8])
        return Timing(median / 1000.0, p20 / 1000.0, p80 / 1000.0, peak)
    seconds = []
    until = time.perf_counter() + budget_seconds
    while len(seconds) < 3 or time.perf_counter() < until:
        start = clock()
        call()
        seconds.append(clock() - start)
    p20, *_, p80 = statistics.quantiles(seconds, n=5)
    return Timing(statistics.median(seconds), p20, p80, peak)


def matmul_flops_per_second(
    device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter
) -> float:
    """What a large square product through PyTorch reaches on random data: the ceiling that kernels are compared with."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * size**3 / measure(lambda: left @ right, device, clock=clock).median_seconds


def copy_bytes_per_second(device: torch.device) -> float:
    """Bytes read and written a second by a device-to-device copy of 1 GiB (16 MiB on a CPU)."""
    source = torch.empty(2**30 if device.type == "cuda" else 2**24, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.numel() / measure(lambda: target.copy_(source), device).median_seconds


def first_line(error: Exception) -> str:
    """What stands in a results file for a measurement that failed."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def environment(device: torch.device) -> dict[str, str]:
    """Date, commit (of a copy without .git: what BENCHMARK_COMMIT says), device and versions, to stand in every results file."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "not installed"
    return {
        "date": datetime.date.today().isoformat(),
        "commit": git_commit() or os.environ.get("BENCHMARK_COMMIT", "unknown"),
        "device": torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"CPU {platform.processor() or platform.machine()}",
        "torch": torch.__version__,
        "triton": triton_version,
        "python": platform.python_version(),
    }
