"""The peer of the reference results is Wav2Vec2ForCTC itself, as large as our model, and goes through our training and decoding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Wav2Vec2ForCTC

from benchmarks.reference_wav2vec2 import main
from benchmarks.training_systems import number_of_parameters, peer_config
from benchmarks.wav2vec2_peer import Wav2Vec2Peer
from lact_asr import HybridASRConfig, HybridASRForCTC
from lact_asr.checkpoint import load_torch_file
from lact_asr.data.generated_speech import generate_corpus
from lact_asr.inference.hybrid_asr_inference import main as transcribe
from lact_asr.training.optimization import parameter_groups

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "conv_dim": [16] * 7, "encoder_target_ds_factor": 8, "num_hidden_layers": 2, "hidden_size": 32, "num_attn_heads": 2,
    "intermediate_size": 48, "num_lact_heads": 1, "lact_fw_hidden_dim": 16, "mask_time_prob": 0.0,
}  # fmt: skip


@pytest.fixture
def config() -> HybridASRConfig:
    return HybridASRConfig(**SMALL)


def test_the_peer_is_the_plain_wav2vec2(config):
    torch.manual_seed(0)
    peer = Wav2Vec2Peer(config).eval()
    torch.manual_seed(0)
    plain = Wav2Vec2ForCTC(peer_config(config)).eval()
    samples, lengths = torch.randn(2, 8000), torch.tensor([8000, 6000])
    mask = (torch.arange(8000) < lengths[:, None]).long()
    labels = torch.tensor([[5, 6, 7], [8, 9, -100]])
    ours, theirs = peer(samples, mask, labels), plain(samples, attention_mask=mask, labels=labels)
    assert torch.equal(ours.logits, theirs.logits)
    torch.testing.assert_close(ours.loss, theirs.loss)
    assert ours.frame_lengths.tolist() == plain._get_feat_extract_output_lengths(lengths).tolist()
    assert abs(number_of_parameters(peer) / number_of_parameters(HybridASRForCTC(config)) - 1) < 0.01


def test_its_warm_start_hears_what_ours_hears(config):
    peer, ours = Wav2Vec2Peer(config).front_end, HybridASRForCTC(config).front_end
    for name in ("output_dim", "samples_per_frame", "receptive_field_samples"):
        assert getattr(peer, name) == getattr(ours, name)
    features, lengths = peer(torch.randn(2, 4000), torch.tensor([4000, 2000]))
    assert features.shape == (2, *ours(torch.randn(1, 4000), None)[0].shape[1:])
    assert lengths.tolist() == ours.frame_lengths(torch.tensor([4000, 2000])).tolist()


def test_its_optimiser_knows_front_end_and_output_layer(config):
    peer = Wav2Vec2Peer(config)
    groups = parameter_groups(peer, 1e-3, 0.5, 0.01, muon=True)
    held = {group["name"]: set(map(id, group["params"])) for group in groups}
    assert id(peer.front_end.feature_extractor.conv_layers[0].conv.weight) in held["encoder"]
    assert id(peer.wav2vec2.lm_head.weight) in held["transformer"]
    assert id(peer.wav2vec2.wav2vec2.encoder.layers[0].attention.q_proj.weight) in held["transformer_muon"]
    assert sum(map(len, held.values())) == len(list(peer.parameters()))


def test_it_trains_and_transcribes(tmp_path, capsys):
    corpus, run, config = tmp_path / "corpus", tmp_path / "run", tmp_path / "config.json"
    generate_corpus(corpus, hours=0.015, seed=1, num_workers=1)
    config.write_text(json.dumps(SMALL))
    flags = (
        f"--config_path {config} --data_dir {corpus} --train_subset train-generated --val_subset dev-generated --output_dir {run} "
        "--batch_size 2 --max_steps 2 --eval_steps 2 --warmup_steps 1 --front_end_warm_start_steps 2 --optimizer muon --num_buckets 2"
    )
    assert main(flags.split()) == 0
    printed = capsys.readouterr().out
    assert "beam + LM" in printed
    for kind in ("greedy", "beam"):
        lines = (run / f"results_dev-generated_{kind}.jsonl").read_text().splitlines()
        assert any("hypothesis" in json.loads(line) for line in lines)
    best = load_torch_file(run / "best_model.pt")["model"]
    model = Wav2Vec2ForCTC.from_pretrained(run / "transformers")
    assert torch.equal(model.lm_head.weight, best["ctc_head.weight"])
    again = run / "again.jsonl"
    flags = f"--checkpoint {run / 'transformers'} --data_dir {corpus} --subset dev-generated --beam_size 50 --output {again}"
    assert transcribe(flags.split()) == 0
    assert _texts(again) == _texts(run / "results_dev-generated_beam.jsonl")


def _texts(path: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["id"]: line["hypothesis"] for line in lines if "hypothesis" in line}
