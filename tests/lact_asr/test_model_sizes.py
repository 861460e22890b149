"""The size table: the figures of the paper-size model, from its own configuration file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lact_asr import HybridASRConfig, HybridASRForCTC
from lact_asr.model_sizes import count_parameters, main, meta_model

ROOT = Path(__file__).resolve().parents[2]
PAPER_CONFIG = ROOT / "configs" / "hybrid_asr_config.json"


@pytest.fixture(scope="module")
def paper_counts() -> dict[str, int]:
    return count_parameters(meta_model(HybridASRConfig.from_json_file(PAPER_CONFIG)))


def test_the_paper_size_model(paper_counts):
    """Each figure from the sizes in its definition, not from the code that it checks."""
    layers, hidden, feed_forward, heads, width = 16, 768, 3072, 4, 1536
    assert paper_counts["fast weights"] == layers * heads * 3 * (hidden // heads) * width == 56_623_104
    assert paper_counts["QKV"] == layers * 3 * hidden**2
    assert paper_counts["fast weights"] + paper_counts["QKV"] == 84_934_656
    assert paper_counts["feed-forward"] == layers * (2 * hidden * feed_forward + feed_forward + hidden + 2 * hidden)
    convolutions = 512 * 10 + 512 * 512 * (4 * 3 + 2 * 2) + 7 * 3 * 512  # with a bias and a norm's two each
    assert paper_counts["front end"] == convolutions + 2 * 512 + 512 * hidden + hidden
    assert paper_counts["CTC head"] == 32 * (hidden + 1)
    assert paper_counts["masked-prediction head"] == 2 * (hidden**2 + hidden) + hidden


def test_the_parts_add_up(paper_counts, tiny_config):
    model = HybridASRForCTC(tiny_config(enable_ttt=True, use_momentum=True, w0_w2_low_rank=2))
    assert sum(count_parameters(model).values()) == sum(parameter.numel() for parameter in model.parameters())
    assert sum(paper_counts.values()) == 175_992_928


def test_one_head_has_the_same_fast_weights_as_four(paper_counts):
    values = {**json.loads(PAPER_CONFIG.read_text()), "num_lact_heads": 1}
    counts = count_parameters(meta_model(HybridASRConfig.from_values(values)))
    assert counts["fast weights"] == paper_counts["fast weights"]


def test_the_file_is_the_defaults_with_a_pretrained_front_end_and_test_time_training():
    file, default = HybridASRConfig.from_json_file(PAPER_CONFIG).to_dict(), HybridASRConfig().to_dict()
    changed = {key: value for key, value in file.items() if default[key] != value}
    name = "facebook/wav2vec2-large-960h-lv60-self"
    assert changed == {"use_wav2vec2_encoder": True, "wav2vec2_model_name": name, "enable_ttt": True}


def test_the_file_names_every_documented_key():
    documented = {
        "use_wav2vec2_encoder", "wav2vec2_model_name", "encoder_target_ds_factor", "freeze_encoder", "encoder_lr_scale",
        "num_hidden_layers", "hidden_size", "intermediate_size", "num_attn_heads", "num_lact_heads", "lact_fw_hidden_dim",
        "lact_chunk_size", "window_size", "fast_weight_lr_init", "use_muon", "use_momentum", "w0_w2_low_rank",
        "enable_ttt", "ttt_loss_type", "ttt_mask_prob", "ttt_steps", "ttt_chunk_size", "hidden_dropout",
        "attention_dropout", "layerdrop", "ctc_vocab_size", "ctc_blank_id",
    }  # fmt: skip
    assert documented <= json.loads(PAPER_CONFIG.read_text()).keys()


def test_no_memory_is_taken():
    model = meta_model(HybridASRConfig(num_hidden_layers=64, hidden_size=8_192, lact_fw_hidden_dim=65_536))
    assert {parameter.device for parameter in model.parameters()} == {torch.device("meta")}
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e11


def test_the_command_prints_the_table(capsys):
    assert main([str(PAPER_CONFIG)]) == 0
    lines = [line.rsplit("  ", maxsplit=1) for line in capsys.readouterr().out.splitlines() if line]
    table = {title.strip(): value.strip() for title, value in lines}
    assert table["fast weights"] == "56.6 M"
    assert table["fast weights with their QKV"] == "84.9 M"
    assert table["total"] == "176.0 M"
    assert table["frame rate"] == "80.0 Hz"
    assert table["samples per frame"] == "200"
    assert table["frames for 10 s"] == "799"


def test_a_bad_configuration_is_one_sentence_and_exit_code_2(tmp_path):
    config = tmp_path / "config.json"
    config.write_text('{"hidden_sise": 768}')
    command = [sys.executable, "-m", "lact_asr.model_sizes", str(config)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        f"error: Unknown configuration key 'hidden_sise' in {config}; see HybridASRConfig for the keys.\n"
    )
    assert main([str(tmp_path / "none.json")]) == 2
