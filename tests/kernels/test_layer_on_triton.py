"""A whole LaCT layer on the Triton kernels against the same layer on the references; in the interpreter without a GPU."""

from __future__ import annotations

import pytest
import torch

from lact_asr import HybridASRConfig
from lact_asr.fast_weight_ops import BACKEND_VARIABLE
from lact_asr.lact_layer import LaCTLayer

HIDDEN = 16
VARIANTS = {
    "whole utterance": {},
    "chunks with momentum": {"lact_chunk_size": 6, "use_momentum": True},
    "one head, applied first": {"num_lact_heads": 1, "lact_chunk_size": 6, "lact_update_order": "apply_then_update"},
}


def make_layer(device: str, **changes) -> LaCTLayer:
    values = {
        "num_hidden_layers": 1,
        "hidden_size": HIDDEN,
        "num_attn_heads": 2,
        "num_lact_heads": 2,
        "lact_fw_hidden_dim": 12,
    }
    torch.manual_seed(3)
    layer = LaCTLayer(HybridASRConfig(**{**values, **changes})).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return layer.to(device)


def frames_and_mask(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows, of 11 and 5 frames."""
    frames = torch.randn(2, 11, HIDDEN, generator=torch.Generator().manual_seed(4))
    mask = torch.arange(11) < torch.tensor([[11], [5]])
    return frames.to(device), mask.to(device)


def output_and_gradients(layer, device: str) -> list[torch.Tensor]:
    frames, mask = frames_and_mask(device)
    frames.requires_grad_()
    output, state = layer(frames, mask)
    output = output.float().masked_fill(~mask[..., None], 0.0)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(output.sin().sum(), [frames, *parameters], allow_unused=True)
    return [output, *state.weights, *(g for g in gradients if g is not None)]


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_the_layer_on_references(name, device, monkeypatch, relative_error):
    layer = make_layer(device, **VARIANTS[name])
    results = {}
    for backend in ("torch", "triton"):
        monkeypatch.setenv(BACKEND_VARIABLE, backend)
        results[backend] = output_and_gradients(layer, device)
    for mine, expected in zip(results["triton"], results["torch"], strict=True):
        # 5e-3: Newton-Schulz amplifies float32's rounding by some 500, and the Gram form squares singular values.
        assert relative_error(mine, expected) < 5e-3


def test_takes_16_bits_under_autocast(device, monkeypatch, relative_error):
    layer = make_layer(device)
    monkeypatch.setenv(BACKEND_VARIABLE, "torch")
    expected = output_and_gradients(layer, device)
    monkeypatch.setenv(BACKEND_VARIABLE, "triton")
    with torch.autocast(device, dtype=torch.float16):
        found = output_and_gradients(layer, device)
    assert found[1].dtype == torch.float16  # the updated fast weights: the fused path was taken in 16 bits
    for mine, exact in zip(found, expected, strict=True):
        assert mine.isfinite().all()
        assert relative_error(mine, exact) < 0.1


def test_a_state_that_goes_on_is_kept_in_32_bits(device, monkeypatch):
    monkeypatch.setenv(BACKEND_VARIABLE, "triton")
    layer, (frames, mask) = make_layer(device), frames_and_mask(device)
    with torch.autocast(device, dtype=torch.float16), torch.no_grad():
        _, first = layer(frames, mask)
        _, second = layer(frames, mask, None, first)
    assert {tensor.dtype for tensor in first.weights} == {torch.float16}  # one chunk: nothing adds up
    assert {tensor.dtype for tensor in second.weights} == {torch.float32}


@pytest.mark.slow
def test_survives_torch_compile(device, monkeypatch, relative_error):
    monkeypatch.setenv(BACKEND_VARIABLE, "triton")
    layer = make_layer(device)
    eager = output_and_gradients(layer, device)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager")
    frames, mask = frames_and_mask(device)
    frames.requires_grad_()
    output, _ = compiled(frames, mask)
    output = output.masked_fill(~mask[..., None], 0.0)
    (gradient,) = torch.autograd.grad(output.sin().sum(), frames)
    assert relative_error(output, eager[0]) < 1e-4
    assert relative_error(gradient, eager[4]) < 1e-3
