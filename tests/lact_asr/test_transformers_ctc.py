"""CTC models of Transformers as checkpoints: what they load as, and one sentence for those that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    Wav2Vec2Processor,
)

from lact_asr.checkpoint import load_checkpoint, load_hybrid_checkpoint
from lact_asr.errors import InputError
from lact_asr.processing_hybrid_asr import HybridASRProcessor
from lact_asr.text import build_vocabulary


def save_processor(folder: Path, **extractor_changes) -> Path:
    """Write what a repository on the hub holds beside the weights."""
    processor = HybridASRProcessor.from_vocabulary(build_vocabulary())
    values = {**processor.feature_extractor.to_dict(), **extractor_changes}
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(**values), processor.tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def save(transformers_model, tmp_path) -> Callable[..., Path]:
    """``save(family, …)`` writes a model, with what is changed in its configuration, and its processor."""

    def write(family: str = "wav2vec2", **changes) -> Path:
        transformers_model(family, **{"vocab_size": 32, "pad_token_id": 0, **changes}).save_pretrained(tmp_path)
        return save_processor(tmp_path)

    return write


@torch.no_grad()
def test_each_family_loads_exactly(family, save, transformers_model):
    checkpoint = load_checkpoint(save(family))
    original, samples = transformers_model(family, vocab_size=32, pad_token_id=0), torch.randn(1, 4000)
    assert type(checkpoint.model) is type(original)
    assert not checkpoint.model.training
    assert torch.equal(checkpoint.model(samples).logits, original(samples).logits)
    assert checkpoint.processor.vocabulary == build_vocabulary()


def test_half_precision_becomes_float32(save, transformers_model):
    folder = save()
    transformers_model("wav2vec2", vocab_size=32, pad_token_id=0).half().save_pretrained(folder)
    assert {parameter.dtype for parameter in load_checkpoint(folder).model.parameters()} == {torch.float32}


def test_weights_that_only_training_needs_may_be_missing(save, capfd):
    """As of facebook/wav2vec2-base-960h, and without Transformers' report on it."""
    folder = save()
    weights = load_file(folder / "model.safetensors")
    del weights["wav2vec2.masked_spec_embed"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    capfd.readouterr()
    assert torch.equal(load_checkpoint(folder).model.lm_head.weight, weights["lm_head.weight"])
    assert "masked_spec_embed" not in "".join(capfd.readouterr())


def test_old_weights_without_safetensors(save, transformers_model):
    folder = save()
    (folder / "model.safetensors").unlink()
    weights = transformers_model("wav2vec2", vocab_size=32, pad_token_id=0).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    assert torch.equal(load_checkpoint(folder).model.lm_head.weight, weights["lm_head.weight"])


def test_an_output_layer_of_another_size(save):
    folder = save()
    weights = load_file(folder / "model.safetensors")
    weights = {name: value[:30] if name.startswith("lm_head") else value for name, value in weights.items()}
    save_file(
        {name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    refused(folder, "do not fit its configuration")


def test_code_of_a_repository_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *question: "y")
    (tmp_path / "spoken.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "spoken", "auto_map": {"AutoConfig": "spoken.Spoken"}})
    )
    refused(tmp_path, "is no checkpoint file")
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("in_configuration", [29, None, 40, 4], ids=["sound", "none", "beyond", "a character"])
def test_the_blank(transformers_model, tmp_path, in_configuration):
    """Vocabularies of fine-tuned XLS-R models have it last, and <s> and </s> beyond the outputs."""
    model = transformers_model("wav2vec2", vocab_size=30, pad_token_id=0)
    model.config.pad_token_id = in_configuration
    model.save_pretrained(tmp_path)
    tokens = ["|", "'", *"abcdefghijklmnopqrstuvwxyz", "[UNK]", "[PAD]"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), unk_token="[UNK]", pad_token="[PAD]")
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.model.config.pad_token_id == 29
    assert list(checkpoint.processor.vocabulary) == tokens
    assert "<s>" in checkpoint.processor.tokenizer.get_vocab()


def test_no_blank(transformers_model, tmp_path):
    model = transformers_model("wav2vec2", vocab_size=28, pad_token_id=0)
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(
        json.dumps({token: index for index, token in enumerate("|'ABCDEFGHIJKLMNOPQRSTUVWXYZ")})
    )
    tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))  # which adds <pad> at the end
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(tmp_path)
    refused(tmp_path, "has no padding token among its 28 outputs")


def test_a_model_without_output_layer(save, tmp_path):
    save()
    config = Wav2Vec2Config(conv_dim=(8,) * 7, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)  # fmt: skip
    Wav2Vec2Model(config).save_pretrained(tmp_path)
    refused(tmp_path, r"lacks weights of a Wav2Vec2ForCTC \(lm_head.*only models that were fine-tuned for CTC")


def test_models_of_another_kind(transformers_model, tmp_path):
    BertConfig().save_pretrained(tmp_path / "text")
    refused(tmp_path / "text", "is a model of the kind bert: .*Transformers' CTC models that hear samples")
    transformers_model("wav2vec2-bert").save_pretrained(tmp_path / "features")
    refused(tmp_path / "features", "is a model of the kind wav2vec2-bert")


def test_adapter_layers(save):
    refused(save(add_adapter=True, num_adapter_layers=1, output_hidden_size=16), "adapter layers after its encoder")


def test_another_sample_rate(save):
    refused(save_processor(save(), sampling_rate=8000), "hears 8000 samples a second, not 16000")


def test_a_vocabulary_that_is_larger_than_the_output(save):
    refused(save(vocab_size=20), "holds characters beyond the 20 outputs of its model")


def test_a_folder_without_processor(transformers_model, tmp_path):
    transformers_model("hubert").save_pretrained(tmp_path)
    refused(tmp_path, "or its processor cannot be loaded")


def test_where_only_a_model_of_this_package_will_do(save):
    folder = save()
    with pytest.raises(InputError, match="is a Wav2Vec2ForCTC; this needs a model of this package"):
        load_hybrid_checkpoint(folder)


def refused(folder: Path, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        load_checkpoint(folder)
    assert len(str(caught.value).splitlines()) == 1
