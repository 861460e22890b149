"""The LaCT layer against a slow one written from its equations: one utterance, one head, one chunk at a time.

Everything here is float64, where both agree to some 1e-12; a tolerance of 1e-8 leaves room for Newton-Schulz, whose
slope of some 500 at zero amplifies rounding at every chunk, and still sees any real difference. Where rotary positions
meet an exact computation the tolerance is 1e-6, because their angles are float32 in every precision.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from lact_asr.attention import allowed_pairs
from lact_asr.fast_weight_state import FastWeightState
from lact_asr.kernels.newton_schulz.reference import COEFFICIENTS
from lact_asr.lact_layer import InitialFastWeights, LaCTLayer

TOLERANCE = {"atol": 1e-8, "rtol": 0}
ROTARY_TOLERANCE = {"atol": 1e-6, "rtol": 0}
HIDDEN = 16


@pytest.fixture(scope="session")
def make_layer(tiny_config):
    """A layer in float64 with parameters of ordinary size, so that every path shows in the output."""

    def make(**changes) -> LaCTLayer:
        layer = LaCTLayer(tiny_config(**changes)).double().eval()
        torch.manual_seed(3)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        return layer

    return make


def random_frames(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def all_real(frames: torch.Tensor) -> torch.Tensor:
    return torch.ones(frames.shape[:2], dtype=torch.bool)


# The slow layer


def literal_attention(layer: LaCTLayer, queries, keys, values, window_size: int) -> torch.Tensor:
    """Softmax attention of one utterance, [T, D] each; a pair (x_i, x_{i+d/2}) is turned as a complex number."""
    config, (frames, hidden) = layer.config, queries.shape
    dim = hidden // config.num_attn_heads
    output = torch.zeros_like(values)

    def turned(vector: torch.Tensor, position: int) -> torch.Tensor:
        pairs = torch.complex(vector[: dim // 2], vector[dim // 2 :])
        angles = [position * config.rope_theta ** (-2 * i / dim) for i in range(dim // 2)]
        pairs = pairs * torch.polar(torch.ones(dim // 2).double(), torch.tensor(angles, dtype=torch.float64))
        return torch.cat([pairs.real, pairs.imag])

    for head in range(config.num_attn_heads):
        part = slice(head * dim, (head + 1) * dim)
        for t in range(frames):
            seen = [j for j in range(frames) if window_size == -1 or abs(t - j) <= window_size // 2]
            scores = torch.stack([turned(queries[t, part], t) @ turned(keys[j, part], j) for j in seen]) / dim**0.5
            output[t, part] = scores.softmax(0) @ values[seen, part]
    return output


def literal_newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    """The polynomials applied to the singular values themselves."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / (values.square().sum().sqrt() + 1e-7)
    for a, b, c in COEFFICIENTS:
        values = a * values + b * values**3 + c * values**5
    return left @ torch.diag(values) @ right


def network(weights, tokens: torch.Tensor) -> torch.Tensor:
    """W1 (SiLU(W0 x) ⊙ (W2 x)) for [T, d]."""
    w0, w1, w2 = weights
    return torch.stack([w1 @ (functional.silu(w0 @ token) * (w2 @ token)) for token in tokens])


def literal_update(layer: LaCTLayer, weights, momenta, norms, keys, values, rates, beta):
    """One Muon step of one head; the gradient of the inner loss comes from autograd, not from the hand-derived one."""
    new_weights, new_momenta = [], []
    for index in range(3):
        varied = [weight.detach().clone().requires_grad_(position == index) for position, weight in enumerate(weights)]
        loss = -(rates[:, index] * (network(varied, keys) * values).sum(-1)).sum()
        step = -torch.autograd.grad(loss, varied[index])[0]
        if momenta is not None:
            step = beta * momenta[index] + step
            new_momenta.append(step)
        updated = weights[index] + (literal_newton_schulz(step) if layer.config.use_muon else step)
        new_weights.append(updated * norms[index] / updated.norm(dim=-1, keepdim=True))
    return new_weights, new_momenta if momenta is not None else None


def literal_head(layer: LaCTLayer, head: int, frames: torch.Tensor, queries, keys, values) -> tuple[torch.Tensor, list]:
    """The fast-weight path of one head for [T, d]: (output before the gate, the weights after the last chunk)."""
    config = layer.config
    queries, keys, values = (functional.silu(tensor) for tensor in (queries, keys, values))
    queries, keys = (tensor / tensor.norm(dim=-1, keepdim=True) for tensor in (queries, keys))
    bias = math.log(math.exp(config.fast_weight_lr_init) - 1)
    rates = torch.log1p(torch.exp(frames @ layer.learning_rate_proj.weight[3 * head : 3 * head + 3].T + bias))
    weights = [weight[0, head].detach() for weight in layer.fast_weights()]
    norms = [weight.norm(dim=-1, keepdim=True) for weight in weights]
    momenta = [torch.zeros_like(weight) for weight in weights] if config.use_momentum else None
    chunk_size = len(frames) if config.lact_chunk_size == -1 else config.lact_chunk_size
    outputs = []
    for start in range(0, len(frames), chunk_size):
        chunk = slice(start, start + chunk_size)
        beta = None
        if config.use_momentum:
            logits = frames[chunk] @ layer.momentum_proj.weight[head] + layer.momentum_proj.bias[head]
            beta = torch.sigmoid(logits.mean())
        before = weights
        weights, momenta = literal_update(
            layer, weights, momenta, norms, keys[chunk], values[chunk], rates[chunk], beta
        )
        looks_ahead = config.lact_update_order == "update_then_apply"
        outputs.append(network(weights if looks_ahead else before, queries[chunk]))
    return torch.cat(outputs), weights


def literal_layer(layer: LaCTLayer, frames: torch.Tensor, window_size: int = -1) -> tuple[torch.Tensor, list]:
    """One utterance [T, D] -> ([T, D], for each head the weights after it)."""
    with torch.enable_grad():
        config = layer.config
        queries, keys, values = (frames @ layer.qkv.weight.T).detach().chunk(3, dim=-1)
        mixed = literal_attention(layer, queries, keys, values, window_size)
        dim, states = HIDDEN // config.num_lact_heads, []
        for head in range(config.num_lact_heads):
            part = slice(head * dim, (head + 1) * dim)
            output, weights = literal_head(layer, head, frames, queries[:, part], keys[:, part], values[:, part])
            output = output / (output.square().mean(-1, keepdim=True) + config.layer_norm_eps).sqrt()
            gate = functional.silu(frames @ layer.fast_gate.weight[head] + layer.fast_gate.bias[head])
            mixed[:, part] += output * layer.fast_norm.weight * gate[:, None]
            states.append(weights)
        return (mixed @ layer.output.weight.T).detach(), states


LAYERS = {
    "whole utterance": {},
    "whole utterance, applied first": {"lact_update_order": "apply_then_update"},
    "chunks": {"lact_chunk_size": 4},
    "chunks, applied first": {"lact_chunk_size": 4, "lact_update_order": "apply_then_update"},
    "chunks with momentum": {"lact_chunk_size": 3, "use_momentum": True},
    "chunks with momentum, applied first": {
        "lact_chunk_size": 3,
        "use_momentum": True,
        "lact_update_order": "apply_then_update",
    },
    "chunks of one frame": {"lact_chunk_size": 1},
    "plain gradient ascent": {"lact_chunk_size": 4, "use_muon": False, "fast_weight_lr_init": 0.5},
    "low rank": {"lact_chunk_size": 4, "w0_w2_low_rank": 2},
    "one head": {"lact_chunk_size": 4, "num_lact_heads": 1},
    "four heads": {"lact_chunk_size": 4, "num_lact_heads": 4},
    "large learning rate": {"lact_chunk_size": 4, "fast_weight_lr_init": 3.0},
    "window": {"lact_chunk_size": 4, "window_size": 5},
}


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_slow_layer(name, make_layer):
    layer = make_layer(**LAYERS[name])
    frames = random_frames(2, 10)
    window_size = layer.config.window_size
    outputs, state = layer(frames, all_real(frames), allowed_pairs(all_real(frames), window_size))
    for row in range(2):
        expected, expected_weights = literal_layer(layer, frames[row], window_size)
        torch.testing.assert_close(outputs[row], expected, **ROTARY_TOLERANCE)
        for head, weights in enumerate(expected_weights):
            for mine, other in zip(state.weights, weights, strict=True):
                torch.testing.assert_close(mine[row, head], other, **TOLERANCE)


# State


@torch.no_grad()
@pytest.mark.parametrize("order", ["update_then_apply", "apply_then_update"])
@pytest.mark.parametrize("use_momentum", [False, True])
@pytest.mark.parametrize("low_rank", [-1, 2])
def test_state_carried_over_calls_equals_chunks_of_one_call(order, use_momentum, low_rank, make_layer):
    """A window of one frame makes attention the same in both: every frame sees itself alone."""
    layer = make_layer(
        lact_chunk_size=4, lact_update_order=order, use_momentum=use_momentum, w0_w2_low_rank=low_rank, window_size=1
    )
    frames = random_frames(2, 11)
    expected, expected_state = layer(frames, all_real(frames), allowed_pairs(all_real(frames), 1))
    outputs, state = [], None
    for chunk in (frames[:, :4], frames[:, 4:8], frames[:, 8:]):
        output, state = layer(chunk, all_real(chunk), allowed_pairs(all_real(chunk), 1), state)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected, **TOLERANCE)
    assert_states_equal(state, expected_state)
    assert (state.momentum is not None) == use_momentum


def assert_states_equal(state: FastWeightState, expected: FastWeightState, rows: slice = slice(None)) -> None:
    for mine, other in zip(state.weights, expected.weights, strict=True):
        torch.testing.assert_close(mine[rows], other, **TOLERANCE)
    for mine, other in zip(state.momentum or (), expected.momentum or (), strict=True):
        torch.testing.assert_close(mine[rows], other, **TOLERANCE)


@torch.no_grad()
def test_momentum_matters_from_the_second_chunk_on(make_layer):
    frames = random_frames(1, 8)
    with_momentum, without = make_layer(lact_chunk_size=4, use_momentum=True), make_layer(lact_chunk_size=4)
    without.load_state_dict(
        {key: value for key, value in with_momentum.state_dict().items() if not key.startswith("momentum_proj")}
    )
    difference = (with_momentum(frames, all_real(frames))[0] - without(frames, all_real(frames))[0]).abs()
    assert difference[:, :4].max() < 1e-12
    assert difference[:, 4:].max() > 1e-3


@torch.no_grad()
def test_applied_first_a_single_chunk_sees_the_initial_weights_and_updates_them(make_layer):
    frames = random_frames(2, 6)
    applied_first = make_layer(lact_update_order="apply_then_update")
    looks_ahead = make_layer(lact_update_order="update_then_apply")
    never_updated = make_layer(lact_chunk_size=6, lact_update_order="apply_then_update")
    outputs, state = applied_first(frames, all_real(frames))
    torch.testing.assert_close(outputs, never_updated(frames, all_real(frames))[0], **TOLERANCE)
    other = frames.clone()
    other[:, 3:] = random_frames(2, 3).flip(0)
    # Later frames reach earlier ones through attention, so the comparison leaves attention out.
    same = layer_without_attention(applied_first, frames)[:, :3] - layer_without_attention(applied_first, other)[:, :3]
    assert same.abs().max() < 1e-12
    ahead = layer_without_attention(looks_ahead, frames)[:, :3] - layer_without_attention(looks_ahead, other)[:, :3]
    assert ahead.abs().max() > 1e-3
    for updated, initial in zip(state.weights, applied_first.fast_weights(), strict=True):
        assert (updated - initial).abs().max() > 1e-2


def layer_without_attention(layer: LaCTLayer, frames: torch.Tensor) -> torch.Tensor:
    """With every frame attending to itself alone, frames meet in the fast weights and nowhere else."""
    return layer(frames, all_real(frames), allowed_pairs(all_real(frames), 1))[0]


@torch.no_grad()
def test_row_norms_of_the_state_are_those_of_the_initial_weights(make_layer):
    layer = make_layer(lact_chunk_size=2, use_momentum=True)
    frames = random_frames(3, 12)
    _, state = layer(frames, all_real(frames))
    for updated, initial in zip(state.weights, layer.fast_weights(), strict=True):
        expected = initial.norm(dim=-1).expand(3, -1, -1)
        torch.testing.assert_close(updated.norm(dim=-1), expected, atol=0, rtol=1e-12)


@torch.no_grad()
def test_a_detached_state_has_the_same_values_and_no_history(make_layer):
    layer = make_layer(use_momentum=True)
    frames = random_frames(1, 5)
    with torch.enable_grad():
        _, state = layer(frames, all_real(frames))
    detached = state.detach()
    assert all(tensor.requires_grad for tensor in state.weights)
    assert not any(tensor.requires_grad for tensor in (*detached.weights, *detached.momentum))
    assert_states_equal(detached, state)


# Padding

LENGTHS = (10, 4, 7, 0, 1)


@torch.no_grad()
@pytest.mark.parametrize("garbage", [0.0, 1e4, -3.0])
@pytest.mark.parametrize("name", LAYERS)
def test_padding_changes_nothing(name, garbage, make_layer):
    layer = make_layer(**LAYERS[name])
    frames = random_frames(len(LENGTHS), 13)
    mask = torch.arange(13) < torch.tensor(LENGTHS)[:, None]
    frames[~mask] = garbage
    window_size = layer.config.window_size
    outputs, state = layer(frames, mask, allowed_pairs(mask, window_size))
    assert torch.isfinite(outputs).all()
    for row, length in enumerate(LENGTHS):
        if length == 0:
            continue
        alone = frames[row : row + 1, :length]
        expected, expected_state = layer(alone, all_real(alone), allowed_pairs(all_real(alone), window_size))
        torch.testing.assert_close(outputs[row, :length], expected[0], **TOLERANCE)
        assert_states_equal(state, expected_state, slice(row, row + 1))


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_rows_without_frames_keep_the_initial_state(name, make_layer):
    layer = make_layer(**LAYERS[name])
    frames = random_frames(2, 5)
    mask = torch.tensor([[True] * 5, [False] * 5])
    _, state = layer(frames, mask, allowed_pairs(mask, layer.config.window_size))
    for updated, initial in zip(state.weights, layer.fast_weights(), strict=True):
        assert torch.equal(updated[1], initial[0])
    assert not any(tensor[1].any() for tensor in state.momentum or ())


@torch.no_grad()
@pytest.mark.parametrize("use_momentum", [False, True])
def test_not_even_nan_in_the_padding_reaches_the_state(use_momentum, make_layer):
    layer = make_layer(lact_chunk_size=4, use_momentum=use_momentum)
    frames = random_frames(2, 10)
    mask = torch.arange(10) < torch.tensor([10, 6])[:, None]
    _, expected = layer(frames, mask, allowed_pairs(mask, -1))
    frames[~mask] = math.nan
    _, state = layer(frames, mask, allowed_pairs(mask, -1))
    assert_states_equal(state, expected)


def test_padding_gets_no_gradient_and_gives_none(make_layer):
    layer = make_layer(lact_chunk_size=4, use_momentum=True)
    mask = torch.arange(10) < torch.tensor([10, 6, 0])[:, None]
    gradients = []
    for garbage in (0.0, 1e3):
        frames = random_frames(3, 10)
        frames[~mask] = garbage
        frames.requires_grad_()
        outputs, _ = layer(frames, mask, allowed_pairs(mask, -1))
        layer.zero_grad()
        outputs[mask].square().sum().backward()
        assert not frames.grad[~mask].any()
        gradients.append([parameter.grad.clone() for parameter in layer.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, atol=1e-8, rtol=1e-8)


# Parameters and precision


def test_gradients_are_those_of_finite_differences(make_layer):
    layer = make_layer(lact_chunk_size=2, use_momentum=True, lact_fw_hidden_dim=3)
    frames = random_frames(1, 4).requires_grad_()

    def output_and_state(inputs):
        outputs, state = layer(inputs, all_real(inputs))
        return outputs, *state.weights, *state.momentum

    assert torch.autograd.gradcheck(output_and_state, frames, fast_mode=True)


@pytest.mark.parametrize("rank", [-1, 1, 3])
def test_initial_fast_weights_have_the_stated_shapes_and_rank(rank, tiny_config):
    weights = InitialFastWeights(tiny_config(w0_w2_low_rank=rank)).double()
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter)
    w0, w1, w2 = weights()
    assert (w0.shape, w1.shape, w2.shape) == ((1, 2, 12, 8), (1, 2, 8, 12), (1, 2, 12, 8))
    expected_rank = 8 if rank == -1 else rank
    assert torch.linalg.matrix_rank(w0).tolist() == torch.linalg.matrix_rank(w2).tolist() == [[expected_rank] * 2]
    assert torch.linalg.matrix_rank(w1).tolist() == [[8, 8]]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_fast_weights_stay_in_float32_beside_half_precision(dtype, make_layer):
    layer = make_layer(lact_chunk_size=4, use_momentum=True)
    frames = random_frames(2, 10)
    expected, _ = layer(frames, all_real(frames))
    layer = layer.to(dtype)
    outputs, state = layer(frames.to(dtype), all_real(frames))
    assert outputs.dtype == dtype
    assert {tensor.dtype for tensor in (*state.weights, *state.momentum)} == {torch.float32}
    # half-precision parameters and frames are off by up to 0.4 %; Newton-Schulz spreads that over small directions
    assert (outputs.double() - expected).abs().mean() < 0.1 * expected.abs().mean()
