"""Which tile sizes suit a GPU: times every on-chip kernel over a grid, beside the way through hidden arrays; and both ways
through Newton-Schulz's small matrices.

    python -m benchmarks.tiles --output_dir benchmarks/results/tiles

All configurations are compiled first, on all processors; those that spill registers are timed too. Writes tiles.json.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import torch
from tqdm import tqdm

from benchmarks.timing import environment, first_line, measure
from lact_asr.atomic_files import write_json

GRID = {"tokens": (16, 32, 64, 128), "hidden": (32, 64), "warps": (4, 8), "stages": (2, 3)}
LARGEST_BLOCK = 64 * 64  # tokens × hidden units: more has no chance to fit


def kernels(args: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Callable, object]]:
    """(name, call of its tile sizes or None where it has none to choose, default tile sizes)."""
    from lact_asr.kernels.fast_weight_apply import hidden_arrays as apply_by_arrays
    from lact_asr.kernels.fast_weight_apply import on_chip as apply
    from lact_asr.kernels.fast_weight_gradients import hidden_arrays as gradients_by_arrays
    from lact_asr.kernels.fast_weight_gradients import on_chip as gradients
    from lact_asr.kernels.fast_weight_gradients import on_chip_backward as backward
    from lact_asr.kernels.muon_step import triton_kernels as muon
    from lact_asr.kernels.newton_schulz import launches

    torch.manual_seed(0)
    count, num_tokens, d, dh = args.utterances * args.heads, args.frames, args.head_dim, args.width

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(count, *shape, device=device)).bfloat16()

    weights = normal(dh, d, scale=d**-0.5), normal(d, dh, scale=dh**-0.5), normal(dh, d, scale=d**-0.5)
    keys, values, rates = normal(num_tokens, d), normal(num_tokens, d), normal(num_tokens, 3).abs()
    arguments = (weights, keys, values, rates, torch.tensor([num_tokens], device=device))
    upstream = tuple(torch.randn_like(weight) for weight in weights)
    norms = tuple(weight.float().norm(dim=-1) for weight in weights)

    def muon_step(one_program_max: int) -> Callable:
        return mock.patch.object(launches, "ONE_PROGRAM_MAX", one_program_max)(
            lambda tiles: muon.muon_step(weights, upstream, norms)
        )

    yield "Muon step, a program for a matrix's small products", muon_step(args.head_dim), None
    yield "Muon step, a launch for each small product", muon_step(0), None
    by_arrays = functools.partial(gradients_by_arrays.fast_weight_gradients, *arguments)
    yield "gradients by hidden arrays", lambda tiles: by_arrays(), None
    yield "gradients", lambda tiles: gradients.fast_weight_gradients(*arguments, tiles=tiles), gradients.TILES
    yield "apply by hidden arrays", lambda tiles: apply_by_arrays.fast_weight_apply(weights, keys), None
    yield "apply", lambda tiles: apply.fast_weight_apply(weights, keys, tiles), apply.default_tiles()
    yield (
        "apply, of queries", lambda tiles: apply.queries_derivative(weights, keys, values, tiles), apply.QUERIES_TILES
    )  # fmt: skip
    yield (
        "gradients, of weights", lambda tiles: backward.weights_derivatives(*arguments, upstream, tiles),
        backward.default_weights_tiles(),
    )  # fmt: skip
    yield (
        "gradients, of tokens", lambda tiles: backward.tokens_derivatives(*arguments, upstream, tiles),
        backward.TOKENS_TILES,
    )  # fmt: skip


def grid() -> list:
    """All tile sizes that have a chance to fit."""
    from lact_asr.kernels.triton_tiles import Tiles

    candidates = [Tiles(*values) for values in itertools.product(*GRID.values())]
    return [tiles for tiles in candidates if tiles.tokens * tiles.hidden <= LARGEST_BLOCK]


def compile_only(args: argparse.Namespace, capability: int, tiles) -> None:
    """Compile every kernel for one configuration into Triton's cache on disk; what does not compile is met again when timed."""
    from lact_asr.kernels.ahead_of_time import launches_compile_only

    with launches_compile_only(capability):
        for _, call, default in kernels(args, torch.device("cpu")):
            if default is not None:
                with contextlib.suppress(Exception):
                    call(tiles)


def compile_all(args: argparse.Namespace) -> None:
    """Every configuration, a process for each processor."""
    major, minor = torch.cuda.get_device_capability()
    compile_one = functools.partial(compile_only, args, 10 * major + minor)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        list(tqdm(pool.map(compile_one, grid()), "compiling", total=len(grid()), unit="configuration"))


def run(args: argparse.Namespace, device: torch.device, keep: Callable[[list[dict]], None]) -> list[dict]:
    """Microseconds of every kernel at every configuration that compiles and fits; ``keep`` gets all results after each kernel."""
    results = []
    for name, call, default in kernels(args, device):
        choices = [None] if default is None else [default, *(tiles for tiles in grid() if tiles != default)]
        for tiles in tqdm(choices, name, unit="configuration"):
            entry = {"kernel": name, "tiles": None if tiles is None else vars(tiles), "default": tiles == default}
            try:
                timing = measure(functools.partial(call, tiles), device, args.budget_seconds)
                entry["microseconds"] = 1e6 * timing.median_seconds
            except Exception as error:  # too much shared memory: no choice for this GPU
                entry["failure"] = first_line(error)
            results.append(entry)
        keep(results)
    return results


def report(results: list[dict], best: int = 5) -> Iterator[str]:
    """For each kernel its default and its best configurations."""
    for name, entries in itertools.groupby(results, key=lambda entry: entry["kernel"]):
        timed = sorted((entry for entry in entries if "microseconds" in entry), key=lambda entry: entry["microseconds"])
        yield name
        for entry in [entry for i, entry in enumerate(timed) if i < best or entry["default"]]:
            chosen = " ".join(f"{key}={value}" for key, value in (entry["tiles"] or {}).items())
            yield f"  {entry['microseconds']:10.1f} us  {chosen}{'  (default)' if entry['default'] else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results/tiles"))
    parser.add_argument("--utterances", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--frames", type=int, default=800, help="of each utterance (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--head_dim", type=int, default=192, help="at most 192 (default: %(default)s)")
    parser.add_argument("--width", type=int, default=1536, help="of the fast network (default: %(default)s)")
    parser.add_argument("--budget_seconds", type=float, default=0.05, help="a configuration (default: %(default)s)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("No CUDA device here, and tile sizes can be chosen on one only.")
    device = torch.device("cuda")
    compile_all(args)
    facts = {**environment(device), "command": " ".join(["python -m benchmarks.tiles", *sys.argv[1:]])}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "tiles.json"
    results = run(args, device, lambda results: write_json(path, {**facts, "results": results}))
    print("\n".join(report(results)))


if __name__ == "__main__":
    main()
