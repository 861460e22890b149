"""Reading the front end out of checkpoints of every family and format, and refusing those that cannot be used."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig

from lact_asr.errors import InputError
from lact_asr.front_end.architecture import STOCK_STRIDES
from lact_asr.front_end.pretrained import front_end_config_from_pretrained, read_front_end_weights
from lact_asr.wav2vec2_encoder import Wav2Vec2FrontEnd

FAMILIES = ("wav2vec2", "hubert", "wavlm", "data2vec")
CONV_DIM = (16, 12, 16, 20, 16, 24, 16)  # as in conftest.py


def stock_encoder(model: nn.Module) -> nn.Module:
    return next(module for name, module in model.named_modules() if name.split(".")[-1] == "feature_extractor")


def assert_loads_exactly(folder, model: nn.Module) -> None:
    front_end = Wav2Vec2FrontEnd.from_pretrained(folder)
    expected = stock_encoder(model).state_dict()
    assert front_end.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in front_end.state_dict().items())


@pytest.mark.parametrize("ctc", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_format_loads_exactly(family, ctc, tmp_path, stock_model):
    model = stock_model(family, ctc=ctc)
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


def test_half_precision_checkpoints_load_as_float32(tmp_path, stock_model):
    stock_model("hubert").half().save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in Wav2Vec2FrontEnd.from_pretrained(tmp_path).parameters()} == {torch.float32}


def test_configuration_keys_of_a_checkpoint(tmp_path, stock_model):
    stock_model("wavlm", "group", bias=False).save_pretrained(tmp_path)
    assert front_end_config_from_pretrained(tmp_path) == {
        "conv_dim": CONV_DIM,
        "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
        "conv_stride": STOCK_STRIDES,
        "conv_bias": False,
        "feat_extract_norm": "group",
        "feat_extract_activation": "gelu",
    }


def test_data2vec_is_layer_norm_whatever_its_file_says(tmp_path, stock_model):
    """`Data2VecAudioModel` ignores the key, which published configuration files carry."""
    model = stock_model("data2vec")
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
def good_checkpoint(tmp_path_factory, stock_model):
    folder = tmp_path_factory.mktemp("checkpoint")
    stock_model("wav2vec2").save_pretrained(folder)
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
