"""The configuration: what it refuses and in which words, its files, and the numbers it implies."""

from __future__ import annotations

import json
import math

import pytest

from lact_asr import HybridASRConfig
from lact_asr.errors import InputError

IMPOSSIBLE = [
    ("hidden_size", "16", "whole number"),
    ("hidden_size", 16.0, "whole number"),
    ("hidden_size", 0, "at least 1"),
    ("hidden_size", None, "whole number"),
    ("num_hidden_layers", True, "whole number"),
    ("num_hidden_layers", 0, "at least 1"),
    ("intermediate_size", -1, "at least 1"),
    ("num_attn_heads", 7, "must divide hidden_size"),
    ("num_attn_heads", 768, "even size"),
    ("num_lact_heads", 5, "must divide hidden_size"),
    ("lact_fw_hidden_dim", 0, "at least 1"),
    ("lact_chunk_size", 0, "-1 or at least 1"),
    ("lact_chunk_size", -2, "-1 or at least 1"),
    ("window_size", 0, "-1 or at least 1"),
    ("ttt_chunk_size", 0, "-1 or at least 1"),
    ("w0_w2_low_rank", 0, "-1 or at least 1"),
    ("lact_update_order", "both", "update_then_apply, apply_then_update"),
    ("use_muon", 1, "true or false"),
    ("use_momentum", "yes", "true or false"),
    ("fast_weight_lr_init", 0, "above 0"),
    ("fast_weight_lr_init", math.inf, "finite number"),
    ("rope_theta", 0.0, "above 0"),
    ("layer_norm_eps", -1e-5, "above 0"),
    ("initializer_range", -0.1, "at least 0"),
    ("encoder_target_ds_factor", 0, "1 to 8"),
    ("encoder_target_ds_factor", 9, "1 to 8"),
    ("encoder_target_ds_factor", 5.0, "whole number"),
    ("encoder_lr_scale", -0.1, "at least 0"),
    ("wav2vec2_model_name", 5, "a name or null"),
    ("conv_dim", 512, "list of whole numbers"),
    ("conv_dim", None, "list of whole numbers"),
    ("conv_dim", "512", "list of whole numbers"),
    ("conv_dim", [512] * 6, "seven layers"),
    ("conv_dim", [512.5] * 7, "list of whole numbers"),
    ("conv_kernel", [10, 3, 3, 3, 3, 2, 0], "list of whole numbers"),
    ("conv_stride", [5, 2, 2, 2, 2, 2, 1], "conv_stride"),
    ("feat_extract_norm", "batch", "layer, group"),
    ("feat_extract_activation", "no_such", "feat_extract_activation"),
    ("ttt_loss_type", "contrastive", "masked_prediction, entropy"),
    ("ttt_loss_weight", math.nan, "finite number"),
    ("ttt_loss_weight", -0.5, "at least 0"),
    ("ttt_mask_prob", 1.0, "below 1"),
    ("ttt_mask_length", 0, "at least 1"),
    ("ttt_steps", -1, "at least 0"),
    ("ttt_steps", 1.5, "whole number"),
    ("hidden_dropout", 1, "below 1"),
    ("hidden_dropout", "0.1", "finite number"),
    ("attention_dropout", math.nan, "finite number"),
    ("layerdrop", -0.05, "at least 0"),
    ("mask_time_prob", 2.0, "below 1"),
    ("mask_feature_length", 0, "at least 1"),
    ("ctc_vocab_size", 1, "at least 2"),
    ("ctc_blank_id", 32, "below ctc_vocab_size"),
    ("ctc_blank_id", -1, "below ctc_vocab_size"),
]


@pytest.mark.parametrize(("key", "value", "rule"), IMPOSSIBLE, ids=lambda entry: str(entry)[:25])
def test_impossible_values_give_one_sentence_with_key_and_file(key, value, rule, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({key: value}))
    with pytest.raises(InputError, match=rule) as caught:
        HybridASRConfig.from_json_file(file)
    assert key in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=rule):
        HybridASRConfig(**{key: value})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"hiden_size": 768}', "Unknown configuration key 'hiden_size'"),
        ('{"model_type": "wav2vec2"}', "of type 'wav2vec2'"),
        ("", "not readable JSON"),
        ('{"hidden_size": 768', "not readable JSON"),
        ("[768]", "one JSON object"),
    ],
)
def test_files_that_are_no_configuration(content, message, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        HybridASRConfig.from_json_file(file)
    assert str(file) in str(caught.value)


def test_missing_files_folders_and_binary_files(tmp_path):
    with pytest.raises(InputError, match="no configuration file"):
        HybridASRConfig.from_json_file(tmp_path / "none.json")
    with pytest.raises(InputError, match="not readable"):
        HybridASRConfig.from_json_file(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not readable JSON"):
        HybridASRConfig.from_json_file(tmp_path / "binary.json")


def test_defaults_are_the_documented_ones():
    config = HybridASRConfig()
    documented = {
        "num_hidden_layers": 16, "hidden_size": 768, "intermediate_size": 3072, "num_attn_heads": 8, "num_lact_heads": 4,
        "lact_fw_hidden_dim": 1536, "fast_weight_lr_init": 0.01, "w0_w2_low_rank": -1, "ttt_mask_prob": 0.15,
        "ttt_steps": 1, "hidden_dropout": 0.1, "attention_dropout": 0.1, "layerdrop": 0.05, "ctc_vocab_size": 32,
        "ctc_blank_id": 0, "encoder_target_ds_factor": 5,
    }  # fmt: skip
    assert {key: getattr(config, key) for key in documented} == documented


@pytest.mark.parametrize("factor", range(1, 9))
def test_the_frame_rate(factor):
    config = HybridASRConfig(encoder_target_ds_factor=factor)
    assert config.samples_per_frame == 40 * factor
    assert config.frame_rate_hz == pytest.approx(400 / factor)


def test_the_default_frame_rate_is_80_hz():
    assert HybridASRConfig().frame_rate_hz == 80


def test_files_round_trip(tiny_config, tmp_path):
    config = tiny_config(
        conv_dim=[8, 9, 10, 11, 12, 13, 14], use_momentum=True, window_size=5, wav2vec2_model_name="a/b", rope_theta=100
    )
    config.save_pretrained(tmp_path)
    for loaded in (
        HybridASRConfig.from_json_file(tmp_path / "config.json"),
        HybridASRConfig.from_pretrained(tmp_path),
    ):
        assert loaded.to_dict() == config.to_dict()
        assert loaded.conv_dim == (8, 9, 10, 11, 12, 13, 14)


def test_names_of_transformers_are_understood():
    config = HybridASRConfig.from_values({"vocab_size": 40, "num_attention_heads": 4, "pad_token_id": 3})
    assert (config.ctc_vocab_size, config.num_attn_heads, config.ctc_blank_id) == (40, 4, 3)
    assert config.vocab_size == 40


def test_the_default_loss_is_the_one_that_was_trained_for():
    assert HybridASRConfig().default_ttt_loss == "entropy"
    assert HybridASRConfig(ttt_loss_type="tent").default_ttt_loss == "tent"
    assert HybridASRConfig(ttt_loss_type="tent+masked_prediction").default_ttt_loss == "entropy"
    for prepared in ({"enable_ttt": True}, {"ttt_training": "joint"}):  # training asks before it adds the head
        assert HybridASRConfig(**prepared).default_ttt_loss == "masked_prediction"
