"""Compile every Triton kernel as the host functions launch it, for a GPU that need not be there.

The host functions run on small CPU tensors with the widths of real models, and each launch compiles instead of running:
so what is checked is what a user's GPU will be given, tile sizes, number of warps and all.

    python -m lact_asr.kernels.ahead_of_time --capability 80 89 90
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

# CUDA C programming guide
SHARED_MEMORY_LIMIT_BYTES = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024}


@dataclass(frozen=True)
class CompiledLaunch:
    """What the compiler made of one kernel and its compile-time arguments.

    Attributes:
        kernel: its name.
        capability: compute capability times ten.
        constants: compile-time arguments, number of warps and of stages.
        registers: of a thread.
        stack_bytes: of a thread; more than 0 where registers were spilled.
        shared_memory_bytes: of a program.
    """

    kernel: str
    capability: int
    constants: str
    registers: int
    stack_bytes: int
    shared_memory_bytes: int

    def fits(self) -> bool:
        """No spilled register, and no more shared memory than the device has."""
        return self.stack_bytes == 0 and self.shared_memory_bytes <= SHARED_MEMORY_LIMIT_BYTES[self.capability]


class _Target:
    """Stands in for Triton's driver: names the GPU to compile for."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # kernels are kept by device: those of another target must not answer for this one

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def launches_compile_only(capability: int) -> Iterator[list[CompiledLaunch]]:
    """Within the context, launching a kernel compiles it for ``capability`` and appends to the list; nothing runs."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    run, seen, found = JITFunction.run, set(), []

    def compile_only(self, *args, grid, warmup, **kwargs):
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        if compiled is not None and compiled.hash not in seen:
            seen.add(compiled.hash)
            found.append(_facts(self.fn.__name__, capability, kwargs, compiled))
        return compiled

    with mock.patch.object(driver, "_active", _Target(capability)), mock.patch.object(JITFunction, "run", compile_only):
        yield found


def _facts(name: str, capability: int, launch_arguments: dict, compiled) -> CompiledLaunch:
    constants = " ".join(f"{key}={value}" for key, value in launch_arguments.items())
    usage = _resource_usage(compiled.asm["cubin"])
    return CompiledLaunch(name, capability, constants, usage["REG"], usage["STACK"], compiled.metadata.shared)


def _resource_usage(cubin: bytes) -> dict[str, int]:
    """``cuobjdump``'s figures of the one kernel in a cubin; the program comes with Triton."""
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(program), "--dump-resource-usage", file.name]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"\b(REG|STACK):(\d+)", output)}


def launch_everything(heads: int, head_dim: int, width: int, num_tokens: int, dtype: torch.dtype) -> None:
    """Every host function once, at one shape: one utterance of ``heads`` heads."""
    from lact_asr.kernels.batches import fits_on_chip
    from lact_asr.kernels.fast_weight_apply import on_chip as apply_on_chip
    from lact_asr.kernels.fast_weight_apply import triton_kernels as apply
    from lact_asr.kernels.fast_weight_gradients import on_chip_backward
    from lact_asr.kernels.fast_weight_gradients import triton_kernels as gradients
    from lact_asr.kernels.muon_step import triton_kernels as muon
    from lact_asr.kernels.newton_schulz import launches as newton_schulz

    def empty(*shape: int) -> torch.Tensor:
        return torch.zeros(heads, *shape, dtype=dtype)

    weights = (empty(width, head_dim), empty(head_dim, width), empty(width, head_dim))
    keys, values = empty(num_tokens, head_dim), empty(num_tokens, head_dim)
    arguments = (weights, keys, values, empty(num_tokens, 3), torch.tensor([num_tokens]))
    gradients.fast_weight_gradients(*arguments)
    apply.fast_weight_apply(weights, keys)
    if fits_on_chip(keys):
        on_chip_backward.weights_derivatives(*arguments, weights)
        on_chip_backward.tokens_derivatives(*arguments, weights)
        apply_on_chip.queries_derivative(weights, keys, values)
    norms = tuple(weight[..., 0].contiguous() for weight in weights)
    muon.muon_step(weights, weights, norms)
    if dtype != torch.float32:  # fast weights that many chunks add to are kept in 32 bits
        muon.muon_step(tuple(weight.float() for weight in weights), weights, norms)
    for weight in weights[:2]:
        newton_schulz.newton_schulz(weight)
    square = torch.zeros(heads, head_dim, head_dim)
    newton_schulz.multiply_squares(square, square)


def compile_everything(
    capability: int, shapes: list[tuple[int, int, int]], dtypes: list[torch.dtype]
) -> list[CompiledLaunch]:
    """All kernels for one capability, at shapes (heads, head dimension, width) and dtypes."""
    with launches_compile_only(capability) as found:
        for heads, head_dim, width in shapes:
            for dtype in dtypes:
                launch_everything(heads, head_dim, width, num_tokens=256, dtype=dtype)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compile every Triton kernel ahead of time; fails on spills or too much shared memory."
    )
    parser.add_argument(
        "--capability", type=int, nargs="+", default=[80, 89, 90], choices=sorted(SHARED_MEMORY_LIMIT_BYTES)
    )
    parser.add_argument(
        "--dtype", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float16", "float32"]
    )
    parser.add_argument(
        "--shape",
        nargs="+",
        default=["4x192x1536", "1x768x1536"],
        help="heads x head dimension x width (default: both of the paper-size model)",
    )
    args = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 makes Triton interpret kernels; unset it to compile them.")
    shapes = [tuple(int(size) for size in shape.split("x")) for shape in args.shape]
    too_large = 0
    for capability in args.capability:
        for launch in compile_everything(capability, shapes, [getattr(torch, name) for name in args.dtype]):
            too_large += not launch.fits()
            print(
                f"{'ok  ' if launch.fits() else 'FAIL'} sm_{launch.capability} {launch.kernel:24} {launch.registers:3} registers, "
                f"{launch.stack_bytes:4} bytes spilled, {launch.shared_memory_bytes:6} bytes shared  {launch.constants}",
                flush=True,
            )
    sys.exit(1 if too_large else 0)


if __name__ == "__main__":
    main()
