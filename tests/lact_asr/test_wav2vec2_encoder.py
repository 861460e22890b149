"""The retuned front end against Transformers' own encoders, on random models and random audio."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from lact_asr.errors import InputError
from lact_asr.front_end.architecture import STOCK_STRIDES, retuned_tail
from lact_asr.wav2vec2_encoder import Wav2Vec2FrontEnd

FAMILIES = ("wav2vec2", "hubert", "wavlm", "data2vec")
GROUP_NORM_FAMILIES = ("wav2vec2", "hubert", "wavlm")
CONV_DIM = (16, 12, 16, 20, 16, 24, 16)  # as in conftest.py


def make_front_end(norm: str = "layer", factor: int = 5, dims: tuple[int, ...] = CONV_DIM) -> Wav2Vec2FrontEnd:
    torch.manual_seed(1)
    front_end = Wav2Vec2FrontEnd(
        SimpleNamespace(
            conv_dim=dims,
            conv_kernel=(10, 3, 3, 3, 3, 2, 2),
            conv_stride=STOCK_STRIDES,
            conv_bias=True,
            feat_extract_norm=norm,
            feat_extract_activation="gelu",
            encoder_target_ds_factor=factor,
        )
    )
    for part in front_end.modules():  # norms that are not the identity, as they are after training
        if isinstance(part, (nn.LayerNorm, nn.GroupNorm)):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
    return front_end


def stock_encoder(model: nn.Module) -> nn.Module:
    return next(module for name, module in model.named_modules() if name.split(".")[-1] == "feature_extractor")


# Strides and dilations


@pytest.mark.parametrize(
    ("factor", "strides", "dilations"),
    [
        (1, (1, 1, 1), (1, 2, 4)),
        (2, (2, 1, 1), (1, 1, 2)),
        (3, (1, 1, 3), (1, 2, 4)),
        (4, (2, 2, 1), (1, 1, 1)),
        (5, (1, 1, 5), (1, 2, 4)),
        (6, (2, 1, 3), (1, 1, 2)),
        (7, (1, 1, 7), (1, 2, 4)),
        (8, (2, 2, 2), (1, 1, 1)),
    ],
)
def test_retuned_tail(factor, strides, dilations):
    assert retuned_tail(factor) == (strides, dilations)
    front_end = make_front_end(factor=factor)
    assert front_end.receptive_field_samples == 400
    assert front_end.samples_per_frame == 40 * factor
    assert front_end.frame_rate_hz == pytest.approx(400 / factor)


@pytest.mark.parametrize("factor", [0, 9, -1, 5.0, "5", True, None])
def test_impossible_factor_is_named(factor):
    with pytest.raises(InputError, match="encoder_target_ds_factor"):
        retuned_tail(factor)
    with pytest.raises(InputError, match="encoder_target_ds_factor"):
        make_front_end(factor=factor)


# Equality with the stock encoders


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_layer_norm_frames_equal_the_stock_frame_of_their_window(family, bias, tmp_path, stock_model):
    model = stock_model(family, bias=bias)
    model.save_pretrained(tmp_path)
    stock = stock_encoder(model)
    audio = torch.randn(2, 4_321, generator=torch.Generator().manual_seed(3))
    for factor in range(1, 9):
        front_end = Wav2Vec2FrontEnd.from_pretrained(tmp_path, target_ds_factor=factor)
        features, lengths = front_end(audio)
        assert features.shape == (2, (4_321 - 400) // (40 * factor) + 1, CONV_DIM[-1])
        assert lengths.tolist() == [features.shape[1]] * 2
        for t in (0, 1, 2, features.shape[1] // 2, features.shape[1] - 1):
            window = audio[:, 40 * factor * t : 40 * factor * t + 400]
            expected = stock(window)
            assert expected.shape[-1] == 1
            torch.testing.assert_close(features[:, t], expected[:, :, 0], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("family", GROUP_NORM_FAMILIES)
def test_group_norm_equals_stock_on_whole_utterances_at_factor_8(family, tmp_path, stock_model):
    model = stock_model(family, "group", bias=False)
    model.save_pretrained(tmp_path)
    front_end = Wav2Vec2FrontEnd.from_pretrained(tmp_path, target_ds_factor=8)
    generator = torch.Generator().manual_seed(4)
    for num_samples in (400, 719, 5_000, 48_123):
        audio = torch.randn(2, num_samples, generator=generator) + 0.3
        expected = stock_encoder(model)(audio).transpose(1, 2)
        for sample_lengths in (None, torch.full((2,), num_samples)):
            features, lengths = front_end(audio, sample_lengths)
            assert lengths.tolist() == [expected.shape[1]] * 2
            torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_configurations_of_transformers_give_the_stock_encoder(norm, stock_model):
    model = stock_model("hubert", norm)
    front_end = Wav2Vec2FrontEnd(model.config)
    front_end.load_state_dict(stock_encoder(model).state_dict())
    audio = torch.randn(1, 6_000)
    torch.testing.assert_close(front_end(audio)[0], stock_encoder(model)(audio).transpose(1, 2), atol=1e-5, rtol=0)


def test_initial_weights_are_distributed_as_in_transformers():
    dims = (64,) * 7
    front_end = make_front_end(dims=dims)
    torch.manual_seed(0)
    model = Wav2Vec2Model(
        Wav2Vec2Config(
            conv_dim=dims,
            conv_bias=True,
            feat_extract_norm="layer",
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        )
    )
    stock = stock_encoder(model).state_dict()
    for key, weight in front_end.state_dict().items():
        if key.endswith("conv.weight"):
            assert weight.std().item() == pytest.approx(stock[key].std().item(), rel=0.15)
        if key.endswith("conv.bias"):
            assert weight.abs().max().item() == pytest.approx(stock[key].abs().max().item(), rel=0.2)


# Padding and lengths


def padded(rows: list[torch.Tensor], width: int, fill: float) -> tuple[torch.Tensor, torch.Tensor]:
    batch = torch.full((len(rows), width), fill)
    for index, row in enumerate(rows):
        batch[index, : len(row)] = row
    return batch, torch.tensor([len(row) for row in rows])


@torch.no_grad()
@pytest.mark.parametrize("fill", [0.0, 1e6, math.nan, math.inf])
@pytest.mark.parametrize("factor", [4, 5, 8])
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_padding_changes_nothing(norm, factor, fill):
    front_end = make_front_end(norm, factor)
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randn(n, generator=generator) + 0.2 for n in (9_000, 400, 399, 5_555, 1, 1_000)]
    features, lengths = front_end(*padded(rows, 9_600, fill))
    assert torch.isfinite(features).all()
    for index, row in enumerate(rows):
        alone, length = front_end(row[None])
        assert lengths[index] == length[0] == alone.shape[1]
        torch.testing.assert_close(features[index, : lengths[index]], alone[0], atol=1e-5, rtol=0)
        assert not features[index, lengths[index] :].any()


@torch.no_grad()
def test_group_norm_statistics_would_see_padding_without_the_mask():
    """The masked statistics do something: zero padding taken for audio gives other features."""
    front_end = make_front_end("group", 8)
    audio, lengths = padded([torch.randn(4_000)], 8_000, 0.0)
    valid = int(front_end.frame_lengths(lengths))
    masked, unmasked = front_end(audio, lengths)[0], front_end(audio)[0]
    assert (masked - unmasked)[:, :valid].abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("factor", range(1, 9))
def test_frame_lengths_are_exact(factor):
    front_end = make_front_end(factor=factor, dims=(2,) * 7)
    counts = [0, 1, 9, 10, 399, 400, 401, *range(400, 1_200, 37), 40 * factor + 399, 40 * factor + 400, 7_777]
    expected = [front_end(torch.zeros(1, count))[0].shape[1] for count in counts]
    assert front_end.frame_lengths(torch.tensor(counts)).tolist() == expected
    assert expected[:7] == [0, 0, 0, 0, 0, 1, 1]


def test_ten_seconds_at_factor_5_give_799_frames():
    assert make_front_end(factor=5).frame_lengths(torch.tensor([160_000, 399, 400])).tolist() == [799, 0, 1]


@pytest.mark.parametrize("num_samples", [0, 5, 399])
def test_batches_too_short_for_a_frame_are_empty(num_samples):
    features, lengths = make_front_end("group")(torch.zeros(2, num_samples), torch.tensor([num_samples, 0]))
    assert features.shape == (2, 0, CONV_DIM[-1])
    assert lengths.tolist() == [0, 0]


# Gradients and precision


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_gradients_are_finite_and_reach_every_parameter(norm):
    front_end = make_front_end(norm)
    audio, lengths = padded([torch.randn(3_000), torch.randn(900), torch.randn(20)], 3_000, math.nan)
    features, _ = front_end(audio, lengths)
    features.square().sum().backward()
    for name, parameter in front_end.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_gradients_equal_those_of_transformers(norm, stock_model):
    model = stock_model("wav2vec2", norm)
    stock = stock_encoder(model)
    front_end = Wav2Vec2FrontEnd(model.config)
    front_end.load_state_dict(stock.state_dict())
    audio = torch.randn(2, 3_000, generator=torch.Generator().manual_seed(6))
    weights = torch.randn(2, 9, CONV_DIM[-1], generator=torch.Generator().manual_seed(7))
    (front_end(audio)[0] * weights).sum().backward()
    (stock(audio).transpose(1, 2) * weights).sum().backward()
    expected = dict(stock.named_parameters())
    for name, parameter in front_end.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_autocast_stays_finite_and_close(norm, dtype):
    front_end = make_front_end(norm)
    # quiet noise on a constant: a variance taken in half precision would be wrong or infinite here
    audio, lengths = padded([3.0 + torch.randn(20_000), 0.01 * torch.randn(5_000), torch.zeros(800)], 20_000, math.nan)
    expected = front_end(audio, lengths)[0].detach()
    with torch.autocast("cpu", dtype=dtype):
        features, _ = front_end(audio, lengths)
    features.float().square().mean().backward()
    assert torch.isfinite(features).all()
    assert (features.float() - expected).abs().mean() < 0.05 * expected.abs().mean()
    assert all(torch.isfinite(parameter.grad).all() for parameter in front_end.parameters())


@torch.no_grad()
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_half_precision_weights(norm):
    front_end = make_front_end(norm)
    audio = torch.randn(1, 4_000)
    expected = front_end(audio)[0]
    features = front_end.to(torch.bfloat16)(audio)[0]
    assert features.dtype == torch.bfloat16
    assert (features.float() - expected).abs().mean() < 0.05 * expected.abs().mean()
