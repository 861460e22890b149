"""The two switches of the fast weights: none at all, and initial ones that are applied but never updated."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from lact_asr import HybridASRForCTC
from lact_asr.checkpoint import load_checkpoint, save_checkpoint
from lact_asr.kernels.fast_weight_apply.reference import fast_weight_apply
from lact_asr.lact_layer import LaCTLayer, constant_updates
from lact_asr.model_sizes import count_parameters, size_table
from lact_asr.text import build_vocabulary

SWITCHES = {
    "none": {"use_fast_weights": False},
    "none, group norm, window": {"use_fast_weights": False, "feat_extract_norm": "group", "window_size": 5},
    "frozen": {"update_fast_weights": False},
    "frozen, chunks with momentum": {"update_fast_weights": False, "lact_chunk_size": 6, "use_momentum": True},
    "frozen, applied first, low rank": {
        "update_fast_weights": False,
        "lact_update_order": "apply_then_update",
        "w0_w2_low_rank": 3,
    },
}


@pytest.fixture
def rows() -> list[torch.Tensor]:
    return [torch.randn(length) for length in (5_000, 400, 2_345)]


@torch.no_grad()
def test_without_fast_weights_a_layer_is_attention_and_a_projection(tiny_config):
    layer = LaCTLayer(tiny_config(use_fast_weights=False))
    assert {name for name, _ in layer.named_parameters()} == {"qkv.weight", "output.weight"}
    frames, mask = torch.randn(2, 7, 16), torch.ones(2, 7, dtype=torch.bool)
    mixed, state = layer(frames, mask)
    queries, keys, values = layer.qkv(frames).chunk(3, dim=-1)
    torch.testing.assert_close(mixed, layer.output(layer.attention(queries, keys, values, None)))
    assert state is None


@torch.no_grad()
def test_frozen_fast_weights_are_the_learned_ones_applied_to_each_frame(tiny_config):
    """Attention left out (every frame sees itself alone), a frame's output depends on no other, and is the network's."""
    layer = LaCTLayer(tiny_config(update_fast_weights=False))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    frames, mask = torch.randn(1, 7, 16), torch.ones(1, 7, dtype=torch.bool)
    mixed, state = layer(frames, mask, torch.eye(7, dtype=torch.bool)[None, None])
    queries, _, values = layer.qkv(frames).chunk(3, dim=-1)
    by_head = functional.normalize(functional.silu(queries).unflatten(-1, (2, 8)).transpose(1, 2), dim=-1)
    fast = functional.rms_norm(fast_weight_apply(layer.fast_weights(), by_head), (8,), eps=layer.fast_norm.eps)
    gate = functional.silu(layer.fast_gate(frames)).mT[..., None]
    fast = (fast * layer.fast_norm.weight * gate).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixed, layer.output(values + fast), atol=1e-5, rtol=1e-5)
    for after, initial in zip(state.weights, layer.fast_weights(), strict=True):
        assert torch.equal(after, initial)


@torch.no_grad()
def test_updating_matters(tiny_model, rows):
    learning, frozen = tiny_model(), tiny_model(update_fast_weights=False)
    frozen.load_state_dict(learning.state_dict())
    assert (learning(rows[0][None]).logits - frozen(rows[0][None]).logits).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("switch", SWITCHES)
def test_padding_changes_no_row(switch, tiny_model, rows):
    model = tiny_model(**SWITCHES[switch])
    mask = torch.arange(5_300) < torch.tensor([len(row) for row in rows])[:, None]
    audio = torch.full((3, 5_300), 7.0)
    audio[mask] = torch.cat(rows)
    together = model(audio, attention_mask=mask.long()).logits
    for index, row in enumerate(rows):
        alone = model(row[None]).logits[0]
        torch.testing.assert_close(together[index, : len(alone)], alone, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("switch", SWITCHES)
def test_the_state_can_be_handed_on(switch, tiny_model, rows):
    """Nothing is learned, so that an utterance's state gives the next one what it gets without."""
    model = tiny_model(**SWITCHES[switch])
    states = model(rows[0][None]).fast_weights
    assert [state is None for state in states] == [not model.config.use_fast_weights] * 2
    audio = torch.stack([rows[2], rows[2].flip(0)])
    assert torch.equal(model(audio, fast_weights=states).logits, model(audio).logits)


@pytest.mark.parametrize("switch", SWITCHES)
def test_gradients_reach_all_that_is_used(switch, tiny_model, rows):
    model = tiny_model(**SWITCHES[switch]).train()
    model(rows[0][None], labels=torch.tensor([[1, 2, 3]])).loss.backward()
    without = {name.rpartition("layer.")[2].partition(".")[0] for name, p in model.named_parameters() if p.grad is None}
    assert without <= {"learning_rate_proj", "momentum_proj"}
    assert not without or not model.config.update_fast_weights


@torch.no_grad()
@pytest.mark.parametrize("switch", SWITCHES)
def test_saved_models_load_exactly(switch, tiny_model, rows, tmp_path):
    vocabulary = build_vocabulary()
    model = tiny_model(**SWITCHES[switch], ctc_vocab_size=len(vocabulary))
    model.save_pretrained(tmp_path)
    save_checkpoint(tmp_path / "model.pt", model, vocabulary)
    for loaded in (HybridASRForCTC.from_pretrained(tmp_path), load_checkpoint(tmp_path / "model.pt").model):
        assert {name: getattr(loaded.config, name) for name in SWITCHES[switch]} == SWITCHES[switch]
        assert torch.equal(loaded(rows[0][None]).logits, model(rows[0][None]).logits)


def test_model_sizes_without_fast_weights(tiny_model):
    model = tiny_model(use_fast_weights=False)
    counts = count_parameters(model)
    assert counts["fast weights"] == 0
    assert sum(counts.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert "fast weights" not in size_table(model.config)


def test_constant_updates_leave_results_and_drop_what_flows_through_updates(tiny_config):
    """The gradient is that of a layer that is given the updated fast weights and does not update them."""
    layer, frozen = LaCTLayer(tiny_config()), LaCTLayer(tiny_config(update_fast_weights=False))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    frozen.load_state_dict(layer.state_dict())
    frames, mask, outer = (
        torch.randn(2, 7, 16, requires_grad=True),
        torch.ones(2, 7, dtype=torch.bool),
        torch.randn(2, 7, 16),
    )
    layer.fast_weights.requires_grad_(False)
    with constant_updates(layer):
        mixed, state = layer(frames, mask)
    assert not any(weight.requires_grad for weight in state.weights)
    assert torch.equal(mixed, layer(frames, mask)[0])
    expected, _ = frozen(frames, mask, state=state)
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-5)
    gradients = [
        torch.autograd.grad((output * outer).sum(), frames)[0] for output in (mixed, expected, layer(frames, mask)[0])
    ]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)
    assert (gradients[0] - gradients[2]).abs().max() > 1e-2


def test_constant_updates_still_reach_the_initial_fast_weights(tiny_model, rows):
    model = tiny_model()
    with constant_updates(model):
        model(rows[0][None]).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        if "fast_weights." in name:
            assert parameter.grad.any(), name
        if "learning_rate_proj" in name:
            assert parameter.grad is None, name
