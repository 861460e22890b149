"""Microbenchmarks of the fast-weight operations: our Triton kernels, plain PyTorch, `torch.compile` of it, and other projects.

    python -m benchmarks.kernels --output_dir benchmarks/results/kernels
    python -m benchmarks.kernels --peer lact=../LaCT --peer dion --peer flash_muon=../flash-muon
    python -m benchmarks.kernels --device cpu --quick        (a check of the script; CPU times mean nothing)

Writes kernels.json (all figures, date, commit, device), kernels.csv (a line each) and roofline.png.
Every comparison of one shape is measured in turn in the same run.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import costs
from benchmarks.peers import PEERS, Orthogonalise, load_peers, peer_argument
from benchmarks.roofline import plot_roofline
from benchmarks.timing import copy_bytes_per_second, environment, first_line, matmul_flops_per_second, measure
from lact_asr.atomic_files import write_csv, write_json
from lact_asr.fast_weight_ops import fast_weight_apply, fast_weight_gradients, muon_step, newton_schulz, row_norms
from lact_asr.kernels.batches import WIDEST_HEAD_ON_CHIP

HEADS = {"4 heads": (4, 192, 1536), "1 head": (1, 768, 1536)}  # heads, head dimension d, fast-weight width dh
MUON_BATCHES = (1, 2, 4, 8, 16, 32)
TOKEN_SHAPES = ((1, 800), (16, 800), (8, 200), (8, 800), (8, 3200), (32, 800))  # utterances, frames
TARGETS = {("muon_step", "4 heads", 16, 0), ("muon_step", "1 head", 8, 0), ("gradients + apply", "4 heads", 16, 800)}


@dataclass(frozen=True)
class Case:
    """One operation at one shape, to be measured in every implementation."""

    operation: str
    heads: str
    utterances: int
    tokens: int
    backward: bool

    @property
    def is_target(self) -> bool:
        return (self.operation, self.heads, self.utterances, self.tokens) in TARGETS and not self.backward


@dataclass(frozen=True)
class Measurement:
    """One line of the results; FLOPs by the plain formulas, and those that our own kernels do where they do fewer."""

    operation: str
    heads: str
    utterances: int
    tokens: int
    direction: str
    implementation: str
    median_microseconds: float
    p20_microseconds: float
    p80_microseconds: float
    peak_megabytes: float | None
    plain_gigaflop: float
    done_gigaflop: float
    minimum_megabytes: float
    teraflops_done_per_second: float
    share_of_matmul_rate: float


def all_cases(quick: bool) -> list[Case]:
    """Targets first, so that a run that is cut short has them."""
    if quick:
        return [
            Case(op, "quick", 2, 0 if op == "muon_step" else 20, back) for op in OPERATIONS for back in (False, True)
        ]
    cases = [Case("muon_step", h, b, 0, back) for h in HEADS for b in MUON_BATCHES for back in (False, True)]
    cases += [Case("newton_schulz", h, 8, 0, False) for h in HEADS]
    cases += [
        Case("gradients + apply", h, b, t, back) for h in HEADS for b, t in TOKEN_SHAPES for back in (False, True)
    ]
    cases += [Case(op, "4 heads", 16, 800, False) for op in ("fast_weight_gradients", "fast_weight_apply")]
    return sorted(cases, key=lambda case: (not case.is_target, case.backward, case.utterances not in (1, 8, 16)))


def sizes(case: Case) -> tuple[int, int, int]:
    return (2, 16, 32) if case.heads == "quick" else HEADS[case.heads]


class Inputs:
    """Random tensors of one case, and the operation on them as a function of the backend."""

    def __init__(self, case: Case, device: torch.device, dtype: torch.dtype) -> None:
        heads, d, dh = sizes(case)
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            values = torch.randn(shape, device=device, generator=generator) * scale
            return values.to(dtype).requires_grad_(case.backward)

        shapes = [(dh, d), (d, dh), (dh, d)]
        self.weights = tuple(normal(1, heads, *shape, scale=shape[1] ** -0.5) for shape in shapes)
        self.norms = tuple(row_norms(weight).detach() for weight in self.weights)
        self.gradients = tuple(normal(case.utterances, heads, *shape) for shape in shapes)
        tokens = max(1, case.tokens)
        self.queries, self.keys, self.values = (normal(case.utterances, heads, tokens, d) for _ in range(3))
        self.rates = (0.01 * torch.rand(case.utterances, heads, tokens, 3, device=device, generator=generator)).to(
            dtype
        )

    def muon_step(self, backend: str) -> tuple[Tensor, ...]:
        return muon_step(self.weights, self.gradients, self.norms, backend=backend)[0]

    def newton_schulz(self, backend: str) -> tuple[Tensor, ...]:
        return tuple(newton_schulz(gradient, backend=backend) for gradient in self.gradients)

    def fast_weight_gradients(self, backend: str) -> tuple[Tensor, ...]:
        return fast_weight_gradients(self.weights, self.keys, self.values, self.rates, backend=backend)

    def fast_weight_apply(self, backend: str) -> tuple[Tensor, ...]:
        return (fast_weight_apply(self.weights, self.queries, backend=backend),)

    def gradients_and_apply(self, backend: str) -> tuple[Tensor, ...]:
        return (*self.fast_weight_gradients(backend), *self.fast_weight_apply(backend))

    def muon_step_by(self, orthogonalise: Orthogonalise) -> tuple[Tensor, ...]:
        """The Muon step around another project's orthogonalisation, as its users would write it."""
        updated = []
        for weight, gradient, norms in zip(self.weights, self.gradients, self.norms, strict=True):
            update = orthogonalise(gradient.flatten(0, 1)).view(gradient.shape)
            new = weight + update.to(weight.dtype)
            updated.append(new * (norms / row_norms(new)))
        return tuple(updated)

    def newton_schulz_by(self, orthogonalise: Orthogonalise) -> tuple[Tensor, ...]:
        return tuple(orthogonalise(gradient.flatten(0, 1)).view(gradient.shape) for gradient in self.gradients)


OPERATIONS: dict[str, Callable[[Inputs, str], tuple[Tensor, ...]]] = {
    "muon_step": Inputs.muon_step,
    "newton_schulz": Inputs.newton_schulz,
    "fast_weight_gradients": Inputs.fast_weight_gradients,
    "fast_weight_apply": Inputs.fast_weight_apply,
    "gradients + apply": Inputs.gradients_and_apply,
}


def with_backward(forward: Callable[[], tuple[Tensor, ...]]) -> Callable[[], None]:
    """Forward and backward pass with ones as the outputs' gradients."""

    def call() -> None:
        outputs = forward()
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])

    return call


def implementations(
    case: Case, inputs: Inputs, triton: bool, compiled: bool, peers: dict[str, Orthogonalise]
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Name and call of each implementation of a case."""
    operation = OPERATIONS[case.operation]
    if triton:
        yield "triton", functools.partial(operation, inputs, "triton")
    yield "pytorch", functools.partial(operation, inputs, "torch")
    if compiled:
        torch.compiler.reset()
        yield "torch.compile", torch.compile(functools.partial(operation, inputs, "torch"), dynamic=False)
    if not case.backward and case.operation in ("muon_step", "newton_schulz"):  # none of them is differentiable
        by_peer = Inputs.muon_step_by if case.operation == "muon_step" else Inputs.newton_schulz_by
        for name, orthogonalise in peers.items():
            yield name, torch.no_grad()(functools.partial(by_peer, inputs, orthogonalise))


def flops_and_bytes(case: Case, implementation: str, element_bytes: int) -> tuple[float, float, float]:
    """FLOPs by the plain formulas, FLOPs done, bytes at least.

    Of Newton-Schulz a backward pass counts as twice the forward one, of bytes everywhere.
    """
    heads, d, dh = sizes(case)
    count = case.utterances * heads
    m, n = min(d, dh), max(d, dh)
    passes = 3.0 if case.backward else 1.0
    if case.operation in ("muon_step", "newton_schulz"):
        plain = passes * costs.newton_schulz_flops(3 * count, m, n)
        done = passes * costs.gram_form_flops(3 * count, m, n) if implementation == "triton" else plain
        moved = costs.muon_bytes(3 * count, m, n, element_bytes)
    else:
        gradients = case.operation != "fast_weight_apply"
        applied = case.operation != "fast_weight_gradients"
        shape = (count, case.tokens, d, dh)
        ours = "on chip" if element_bytes == 2 and d <= WIDEST_HEAD_ON_CHIP else "recomputed"
        plain, done = (
            costs.gradients_flops(*shape, backward if case.backward else None) * gradients
            + costs.apply_flops(*shape, backward if case.backward else None) * applied
            for backward in ("stored", ours if implementation == "triton" else "stored")
        )
        moved = (
            costs.gradients_bytes(*shape, element_bytes) * gradients
            + costs.apply_bytes(*shape, element_bytes) * applied
        )
    return plain, done, passes * moved


def run(
    case: Case, device: torch.device, dtype: torch.dtype, peers: dict[str, Orthogonalise], matmul_rate: float,
    triton: bool, compiled: bool, failures: list[str],
) -> Iterator[Measurement]:  # fmt: skip
    """Measure every implementation of a case."""
    inputs = Inputs(case, device, dtype)
    for name, call in implementations(case, inputs, triton, compiled, peers):
        try:
            timing = measure(with_backward(call) if case.backward else torch.no_grad()(call), device)
        except Exception as error:  # another project's failure, or memory, must not lose the other figures
            failures.append(f"{case} {name}: {first_line(error)}")
            tqdm.write(failures[-1])
            continue
        plain, done, moved = flops_and_bytes(case, name, dtype.itemsize)
        rate = done / timing.median_seconds
        yield Measurement(
            case.operation, case.heads, case.utterances, case.tokens,
            "forward + backward" if case.backward else "forward", name,
            1e6 * timing.median_seconds, 1e6 * timing.p20_seconds, 1e6 * timing.p80_seconds,
            None if timing.peak_bytes is None else timing.peak_bytes / 1e6,
            plain / 1e9, done / 1e9, moved / 1e6, rate / 1e12, rate / matmul_rate,
        )  # fmt: skip


def run_all(
    args: argparse.Namespace, device: torch.device, facts: dict, peers: dict[str, Orthogonalise], failures: list[str]
) -> list[Measurement]:
    """Measure case by case until ``args.seconds`` have passed; what was measured is written after each."""
    start, measurements, left_out = time.perf_counter(), [], []
    for case in tqdm(all_cases(args.quick), "benchmarks", unit="case"):
        passed = time.perf_counter() - start
        if passed > args.seconds:
            left_out.append(str(case))
            continue
        compiled = case.is_target or passed < args.compile_seconds
        rate, triton = facts["matmul_flops_per_second"], device.type == "cuda"
        measurements += run(case, device, getattr(torch, args.dtype), peers, rate, triton, compiled, failures)
        write_results(args.output_dir, facts, measurements, failures)
    write_results(args.output_dir, {**facts, "left_out_for_time": left_out}, measurements, failures)
    return measurements


def write_results(folder: Path, facts: dict, measurements: list[Measurement], failures: list[str]) -> None:
    """kernels.json and kernels.csv, each written beside and renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**facts, "measurements": [asdict(m) for m in measurements], "failures": failures}
    write_json(folder / "kernels.json", content)
    write_csv(folder / "kernels.csv", list(Measurement.__dataclass_fields__), (asdict(m) for m in measurements))


def summary_lines(measurements: list[Measurement]) -> Iterator[str]:
    """Each case with every implementation's time, and how many times faster Triton is."""
    by_case: dict[tuple, dict[str, Measurement]] = {}
    for m in measurements:
        by_case.setdefault((m.operation, m.heads, m.utterances, m.tokens, m.direction), {})[m.implementation] = m
    for (operation, heads, utterances, tokens, direction), found in by_case.items():
        shape = f"{operation}, {heads}, {utterances} utterances" + (f" x {tokens} frames" if tokens else "")
        yield f"{shape}, {direction}"
        ours = found.get("triton")
        for name, m in found.items():
            ratio = f"{m.median_microseconds / ours.median_microseconds:6.2f} x triton" if ours else ""
            share = f"{100 * m.share_of_matmul_rate:5.1f} % of matmul rate"
            yield f"  {name:20} {m.median_microseconds:10.1f} us  {share}  {ratio}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results/kernels"))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME[=PATH]",
        type=peer_argument,
        help=f"another project to compare with: {', '.join(PEERS)}",
    )
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no further case after so long (default: no limit)"
    )
    parser.add_argument(
        "--compile_seconds",
        type=float,
        default=240.0,
        help="no more torch.compile comparisons after so long, but for targets (default: 240)",
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes: a check that everything runs")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "No CUDA device here. --device cpu --quick checks the script on a CPU; its times mean nothing for a GPU."
        )
    device = torch.device(args.device)
    peers, failures = load_peers(args.peer)
    print("\n".join(failures), end="\n" if failures else "")
    matmul_rate = matmul_flops_per_second(device, getattr(torch, args.dtype))
    facts = {
        **environment(device),
        "dtype": args.dtype,
        "matmul_flops_per_second": matmul_rate,
        "copy_bytes_per_second": copy_bytes_per_second(device),
        "command": " ".join(["python -m benchmarks.kernels", *sys.argv[1:]]),
    }
    measurements = run_all(args, device, facts, peers, failures)
    print("\n".join(summary_lines(measurements)))
    print(
        f"matmul: {matmul_rate / 1e12:.0f} TFLOP/s, copy: {facts['copy_bytes_per_second'] / 1e12:.2f} TB/s; {args.output_dir}/kernels.json"
    )
    plot_roofline(args.output_dir / "roofline.png", facts, measurements)


if __name__ == "__main__":
    main()
