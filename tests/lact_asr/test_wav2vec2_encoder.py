"""The retuned front end against Transformers' own encoders, on random models and random audio."""

from __future__ import annotations

import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    Data2VecAudioConfig,
    Data2VecAudioForCTC,
    Data2VecAudioModel,
    HubertConfig,
    HubertForCTC,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMForCTC,
    WavLMModel,
)

from lact_asr.errors import InputError
from lact_asr.wav2vec2_encoder import (
    STOCK_STRIDES,
    Wav2Vec2FrontEnd,
    front_end_config_from_pretrained,
    read_front_end_weights,
    retuned_tail,
)

FAMILIES = {
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model, Wav2Vec2ForCTC),
    "hubert": (HubertConfig, HubertModel, HubertForCTC),
    "wavlm": (WavLMConfig, WavLMModel, WavLMForCTC),
    "data2vec": (Data2VecAudioConfig, Data2VecAudioModel, Data2VecAudioForCTC),
}
GROUP_NORM_FAMILIES = ("wav2vec2", "hubert", "wavlm")
CONV_DIM = (16, 12, 16, 20, 16, 24, 16)  # unequal, so that no layer can be taken for another


def make_model(family: str, norm: str = "layer", *, ctc: bool = False, bias: bool = True, seed: int = 0) -> nn.Module:
    """A random model of one family, in evaluation mode, with norms that are not the identity."""
    torch.manual_seed(seed)
    config_class, base_class, ctc_class = FAMILIES[family]
    config = config_class(
        conv_dim=CONV_DIM,
        conv_bias=bias,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        conv_pos_kernel_size=3,
        vocab_size=8,
        **({} if family == "data2vec" else {"feat_extract_norm": norm}),
    )
    model = (ctc_class if ctc else base_class)(config).eval()
    randomise_norms(model)
    return model


def randomise_norms(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, (nn.LayerNorm, nn.GroupNorm)) and part.weight is not None:
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)


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
    randomise_norms(front_end)
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
def test_layer_norm_frames_equal_the_stock_frame_of_their_window(family, bias, tmp_path):
    model = make_model(family, bias=bias)
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
def test_group_norm_equals_stock_on_whole_utterances_at_factor_8(family, tmp_path):
    model = make_model(family, "group", bias=False)
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
def test_configurations_of_transformers_give_the_stock_encoder(norm):
    model = make_model("hubert", norm)
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
def test_gradients_equal_those_of_transformers(norm):
    model = make_model("wav2vec2", norm)
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


# Checkpoints


def assert_loads_exactly(folder, model: nn.Module) -> None:
    front_end = Wav2Vec2FrontEnd.from_pretrained(folder)
    expected = stock_encoder(model).state_dict()
    assert front_end.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in front_end.state_dict().items())


@pytest.mark.parametrize("ctc", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_format_loads_exactly(family, ctc, tmp_path):
    model = make_model(family, ctc=ctc)
    for name, save in {
        "safetensors": lambda folder: model.save_pretrained(folder),
        "shards": lambda folder: model.save_pretrained(folder, max_shard_size="8KB"),
        "bin": lambda folder: (
            model.config.save_pretrained(folder),
            torch.save(model.state_dict(), folder / "pytorch_model.bin"),
        ),
        "bin_shards": lambda folder: save_bin_shards(model, folder),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        save(folder)
        assert_loads_exactly(folder, model)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1


def save_bin_shards(model: nn.Module, folder) -> None:
    model.config.save_pretrained(folder)
    weight_map = {}
    for number, part in enumerate((list(model.state_dict().items())[0::2], list(model.state_dict().items())[1::2])):
        shard = f"pytorch_model-{number}.bin"
        torch.save(dict(part), folder / shard)
        weight_map.update({key: shard for key, _ in part})
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_half_precision_checkpoints_load_as_float32(tmp_path):
    make_model("hubert").half().save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in Wav2Vec2FrontEnd.from_pretrained(tmp_path).parameters()} == {torch.float32}


def test_configuration_keys_of_a_checkpoint(tmp_path):
    make_model("wavlm", "group", bias=False).save_pretrained(tmp_path)
    assert front_end_config_from_pretrained(tmp_path) == {
        "conv_dim": CONV_DIM,
        "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
        "conv_stride": STOCK_STRIDES,
        "conv_bias": False,
        "feat_extract_norm": "group",
        "feat_extract_activation": "gelu",
    }


def test_data2vec_is_layer_norm_whatever_its_file_says(tmp_path):
    """`Data2VecAudioModel` ignores the key, which published configuration files carry."""
    model = make_model("data2vec")
    model.save_pretrained(tmp_path)
    change_json(tmp_path / "config.json", feat_extract_norm="group")
    assert front_end_config_from_pretrained(tmp_path)["feat_extract_norm"] == "layer"
    assert_loads_exactly(tmp_path, model)


# Bad input


def change_json(path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop_weight(folder) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["feature_extractor.conv_layers.3.layer_norm.bias"]
    save_file(tensors, folder / "model.safetensors")


def rename_all(folder) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({f"other_{key}": value for key, value in tensors.items()}, folder / "model.safetensors")


def truncate(path) -> None:
    path.write_bytes(path.read_bytes()[:1_000])


class NotATensor:
    """Something that only a full unpickling could restore."""


def pickle_checkpoint(folder) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"feature_extractor.conv_layers.0.conv.weight": NotATensor()}, folder / "pytorch_model.bin")


def truncated_bin(folder) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    truncate(folder / "pytorch_model.bin")


def index_without_shard(folder) -> None:
    (folder / "model.safetensors").unlink()
    weight_map = {"feature_extractor.conv_layers.0.conv.weight": "model-00001-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def index_not_json(folder) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{")


BAD_CHECKPOINTS = {
    "missing weight": (drop_weight, r"lacks front-end weights \(1: conv_layers\.3\.layer_norm\.bias"),
    "no front end": (rename_all, "lacks front-end weights"),
    "no weights file": (lambda folder: (folder / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "config not JSON": (lambda folder: (folder / "config.json").write_text("{"), "cannot be used"),
    "unknown family": (lambda folder: change_json(folder / "config.json", model_type="nonsense"), "cannot be used"),
    "other family": (lambda folder: BertConfig().save_pretrained(folder), r"\(bert\) has conv_dim"),
    "other strides": (
        lambda folder: change_json(folder / "config.json", conv_stride=[5, 2, 2, 2, 2, 2, 1]),
        "conv_stride",
    ),
    "other width": (
        lambda folder: change_json(folder / "config.json", conv_dim=[16] * 7),
        "has conv_layers.1.* of shape",
    ),
    "bias without place": (lambda folder: change_json(folder / "config.json", conv_bias=False), "no place for"),
    "other norm": (lambda folder: change_json(folder / "config.json", feat_extract_norm="group"), "no place for"),
    "unknown norm": (
        lambda folder: change_json(folder / "config.json", feat_extract_norm="batch"),
        "feat_extract_norm",
    ),
    "unknown activation": (
        lambda folder: change_json(folder / "config.json", feat_extract_activation="x"),
        "activation",
    ),
    "truncated": (lambda folder: truncate(folder / "model.safetensors"), "cannot be read"),
    "empty": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "cannot be read"),
    "holds a pickle": (pickle_checkpoint, "more than plain tensors"),
    "truncated bin": (truncated_bin, "pytorch_model.bin"),
    "shard absent": (index_without_shard, "does not have it"),
    "index not JSON": (index_not_json, "shard index"),
}


@pytest.fixture(scope="module")
def good_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_model("wav2vec2").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_bad_checkpoints_give_one_clear_sentence(case, good_checkpoint, tmp_path):
    damage, message = BAD_CHECKPOINTS[case]
    folder = tmp_path / "model"
    shutil.copytree(good_checkpoint, folder)
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        Wav2Vec2FrontEnd.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_a_file_in_place_of_a_folder(good_checkpoint):
    with pytest.raises(InputError, match="is a file"):
        Wav2Vec2FrontEnd.from_pretrained(good_checkpoint / "model.safetensors")


def test_two_front_ends_are_refused(good_checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(good_checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {**tensors, **{f"second.{key}": value.clone() for key, value in tensors.items()}}, folder / "model.safetensors"
    )
    with pytest.raises(InputError, match="more than one front end"):
        read_front_end_weights(folder)


@pytest.mark.parametrize("name", ["./no/such/folder", "nobody/no-such-model"])
def test_names_that_cannot_be_found(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else the hub is tried, with retries
    with pytest.raises(InputError, match="neither a folder nor a hub model") as caught:
        Wav2Vec2FrontEnd.from_pretrained(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
