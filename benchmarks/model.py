"""Whole-layer and whole-model benchmarks: what the kernels gain where they are used.

    python -m benchmarks.model --output_dir benchmarks/results/model
    python -m benchmarks.model --device cpu --config_path configs/tiny.json --seconds 2      (a check of the script)

The layer: forward and backward pass of one LaCT layer, time and peak memory. The model: a training step (forward, backward,
AdamW), inference, and inference with one step of test-time training, an utterance at a time. Each with the Triton kernels,
with plain PyTorch, and the layer with `torch.compile` of plain PyTorch (fast weights in float32, as the model has them there, and
in bfloat16, as Triton has them); in turn, in one run. Writes model.json.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.timing import Timing, environment, first_line, measure
from lact_asr import HybridASRConfig, HybridASRForCTC, lact_layer
from lact_asr.atomic_files import write_json
from lact_asr.fast_weight_ops import BACKEND_VARIABLE
from lact_asr.inference.ttt_procedure import TestTimeTrainer, TTTSettings
from lact_asr.lact_layer import LaCTLayer
from lact_asr.sample_rate import SAMPLE_RATE_HZ


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """All fast-weight operations by this backend."""
    with mock.patch.dict(os.environ, {BACKEND_VARIABLE: name}):
        yield


def layer_calls(
    config: HybridASRConfig, utterances: int, frames: int, device: torch.device, compiled: bool
) -> Iterator[tuple[str, str, Callable]]:
    """(backend, implementation, forward and backward pass of one layer): as it is, or by `torch.compile`."""
    torch.manual_seed(0)
    layer = _layer(config).to(device)
    hidden_states = torch.randn(utterances, frames, config.hidden_size, device=device, requires_grad=True)
    mask = torch.ones(utterances, frames, dtype=torch.bool, device=device)

    def call(module: Callable) -> None:
        with autocast(device):
            output, _ = module(hidden_states, mask)
        output.float().square().mean().backward()

    if not compiled:
        for name in ("triton", "torch"):
            yield name, name, functools.partial(call, layer)
        return
    torch.compiler.reset()
    yield "torch", "torch.compile", functools.partial(call, torch.compile(layer, dynamic=False))
    if device.type == "cuda":
        torch.compiler.reset()
        yield (
            "torch",
            "torch.compile, bfloat16",
            in_bfloat16(functools.partial(call, torch.compile(layer, dynamic=False))),
        )


def in_bfloat16(call: Callable[[], None]) -> Callable[[], None]:
    """``call`` with fast weights in bfloat16 in plain PyTorch too, which the model itself keeps in float32: as LaCT's public code."""

    def patched() -> None:
        with mock.patch.object(lact_layer, "fast_weight_dtype", lambda _: torch.bfloat16):  # noqa: PT008 - a mock cannot be compiled
            call()

    return patched


def _layer(config: HybridASRConfig) -> LaCTLayer:
    """One layer with the model's own initialisation."""
    model = HybridASRForCTC(config)
    return next(module for module in model.modules() if isinstance(module, LaCTLayer))


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU; off on a CPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def model_calls(
    config: HybridASRConfig, utterances: int, seconds: float, device: torch.device
) -> Iterator[tuple[str, Callable]]:
    """(what, call) for the whole model."""
    torch.manual_seed(0)
    model = HybridASRForCTC(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    audio = torch.randn(utterances, int(seconds * SAMPLE_RATE_HZ), device=device)
    labels = torch.randint(1, config.ctc_vocab_size, (utterances, max(1, int(10 * seconds))), device=device)

    def training_step() -> None:
        model.train()
        with autocast(device):
            loss = model(audio, attention_mask=torch.ones_like(audio, dtype=torch.long), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def inference() -> Tensor:
        model.eval()
        with autocast(device):
            return model(audio[:1]).logits

    def adapted_inference() -> Tensor:
        model.eval()
        # A random model is sure of nothing.
        settings = TTTSettings(loss_type="entropy", steps=1, max_entropy=1)
        with autocast(device):
            return TestTimeTrainer(model, settings).adapt(audio[0]).logits

    yield f"training step, {utterances} x {seconds:g} s", training_step
    yield f"inference, 1 x {seconds:g} s", inference
    yield f"inference with one TTT step, 1 x {seconds:g} s", adapted_inference


def line(what: str, implementation: str, timing: Timing) -> dict:
    return {"what": what, "implementation": implementation, **asdict(timing)}


def run(
    args: argparse.Namespace, device: torch.device, keep: Callable[[list[dict], list[str]], None]
) -> list[dict]:  # fmt: skip
    """All lines, what takes long to compile last; ``keep`` gets results and failures so far after each."""
    config = HybridASRConfig.from_json_file(args.config_path)
    backends = ("triton", "torch") if device.type == "cuda" else ("torch",)
    frames = int(args.seconds * SAMPLE_RATE_HZ / (40 * config.encoder_target_ds_factor))
    results, failures = [], []

    def attempt(what: str, implementation: str, backend_name: str, call: Callable) -> None:
        try:
            with backend(backend_name):
                results.append(line(what, implementation, measure(call, device, args.budget_seconds)))
        except Exception as error:  # one failure must not lose the other figures
            failures.append(f"{what}, {implementation}: {first_line(error)}")
            tqdm.write(failures[-1])
        keep(results, failures)

    def attempt_layers(compiled: bool) -> None:
        for heads in args.heads:
            layer_config = HybridASRConfig.from_dict({**config.to_dict(), "num_lact_heads": heads})
            what = f"LaCT layer, {heads} heads, {args.utterances} x {frames} frames, forward + backward"
            for name, implementation, call in layer_calls(layer_config, args.utterances, frames, device, compiled):
                if name in backends:
                    attempt(what, implementation, name, call)

    attempt_layers(compiled=False)
    for what, call in model_calls(config, args.utterances, args.seconds, device):
        for backend_name in backends:
            attempt(what, backend_name, backend_name, call)
    if not args.no_compile:
        attempt_layers(compiled=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results/model"))
    parser.add_argument("--config_path", type=Path, default=Path("configs/hybrid_asr_config.json"))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--utterances", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0, help="of audio in each utterance (default: 10)")
    parser.add_argument(
        "--heads", type=int, nargs="+", default=[4, 1], help="fast-weight heads of the layer benchmark (default: 4 1)"
    )
    parser.add_argument("--budget_seconds", type=float, default=1.0, help="of timing for each line (default: 1)")
    parser.add_argument("--no_compile", action="store_true", help="leave the torch.compile comparison out")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("No CUDA device here. --device cpu checks the script on a CPU; its times mean nothing for a GPU.")
    device = torch.device(args.device)
    facts = {**environment(device), "command": " ".join(["python -m benchmarks.model", *sys.argv[1:]])}
    args.output_dir.mkdir(parents=True, exist_ok=True)

    def keep(results: list[dict], failures: list[str]) -> None:
        write_json(args.output_dir / "model.json", {**facts, "results": results, "failures": failures})

    for entry in run(args, device, keep):
        memory = "" if entry["peak_bytes"] is None else f"{entry['peak_bytes'] / 1e6:10.0f} MB"
        print(f"{entry['what']:60} {entry['implementation']:14} {1e3 * entry['median_seconds']:10.2f} ms {memory}")


if __name__ == "__main__":
    main()
