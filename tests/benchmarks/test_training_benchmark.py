"""The training benchmark: systems of equal size on the same batches, operations by the formulas, and its files."""

import csv
import json
import time

import numpy as np
import pytest
import soundfile
import torch
from torch import nn
from transformers import Wav2Vec2ForCTC

from benchmarks.counts import ModelCounts, of_seconds
from benchmarks.training import main, make_parser
from benchmarks.training_batches import corpus_batches, synthetic_batches
from benchmarks.training_systems import Laps, number_of_parameters, our_config, peer_config
from lact_asr import HybridASRForCTC
from lact_asr.processing_hybrid_asr import HybridASRProcessor
from lact_asr.text import build_vocabulary
from lact_asr.training.block_options import checkpoint_activations
from lact_asr.wav2vec2_encoder import FrontEndLayer

SHORT = ("--device", "cpu", "--sizes", "tiny", "--utterances", "2", "--seconds", "0.5", "--steps", "2", "--cpu_time")


@pytest.fixture(scope="module")
def processor() -> HybridASRProcessor:
    return HybridASRProcessor.from_vocabulary(build_vocabulary())


def check_files(folder) -> dict:
    content = json.loads((folder / "training.json").read_text())
    with (folder / "training.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["system"] for line in lines] == ["hybrid", "Wav2Vec2ForCTC"]
    for row, line in zip(content["rows"], lines, strict=True):
        parts = [row[f"{part}_seconds"] for part in ("data", "forward", "backward", "optimiser")]
        assert min(parts) > 0
        assert max(parts) < row["step_seconds"]
        assert row["utilisation"] * content["matmul_flops_per_second"] == pytest.approx(
            row["flops_per_audio_hour"] * row["audio_hours_per_hour"] / 3600, rel=0.2  # medians of products
        )  # fmt: skip
        assert float(line["peak_bytes"]) > 4 * 4 * row["parameters"] > 0  # weights, gradients and AdamW's moments
    assert content["rows"][0]["parameters"] == pytest.approx(content["rows"][1]["parameters"], rel=2e-3)
    assert content["ours_over_peer"][0]["median"] > 0
    return content


@pytest.mark.slow
def test_noise_bursts_to_files_and_a_table(tmp_path, capsys):
    assert main([*SHORT, "--gradient_checkpointing", "--output_dir", str(tmp_path)]) == 0
    content = check_files(tmp_path)
    assert content["data"] == "noise bursts"
    assert content["gradient_checkpointing"]
    out = capsys.readouterr().out
    assert "hybrid" in out
    assert "x the peer's parameters x frames a second" in out


def test_batches_of_a_corpus_are_cropped_and_never_end(tmp_path):
    rows = []
    for number in range(3):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.random.default_rng(number).normal(0, 0.1, 9_000), 16_000)
        rows.append(json.dumps({"audio_filepath": str(path), "text": "NO"}))
    (tmp_path / "three.jsonl").write_text("\n".join(rows))
    data = ["--data_dir", str(tmp_path), "--dataset_type", "manifest", "--subset", "three"]
    processor, batches = corpus_batches(make_parser().parse_args([*SHORT, *data]))
    assert len(processor.vocabulary) == 32
    widths = [next(batches)["input_values"].shape for _ in range(5)]  # two batches an epoch
    assert set(widths) == {(2, 8_000), (1, 8_000)}


def test_operations_are_those_of_the_products():
    class OneProduct(nn.Module):
        """[1, samples] as frames of 100 samples, times a matrix that nothing comes before: forward and one derivative."""

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(100, 7, bias=False)

        def forward(self, waveform):
            self.logits = self.linear(waveform.unflatten(1, (-1, 100)))
            return self

    counts = ModelCounts(OneProduct)
    assert counts.flops(16_000) == 2 * (2 * 160 * 100 * 7)
    assert counts.saved_bytes(16_000) == 4 * 16_000
    assert of_seconds(counts.flops)(3.5) == pytest.approx(3.5 * counts.flops(16_000))


def test_operations_of_convolutions_and_of_products_added_in_place_are_counted():
    class TwoConvolutionsAndASum(nn.Module):
        def __init__(self):
            super().__init__()
            steps = {"kernel": 3, "stride": 2, "dilation": 1, "bias": False, "norm": None, "activation": "gelu"}
            self.first, self.second = FrontEndLayer(100, 7, **steps), FrontEndLayer(7, 5, **steps)

        def forward(self, waveform):
            frames = self.second(self.first(waveform.unflatten(1, (-1, 100)), None), None)
            fixed = torch.ones(1, 39, 5)
            self.logits = frames.clone().baddbmm_(torch.ones(1, 39, 11), torch.ones(1, 11, 5)) + fixed
            return self

    first, second, product = 2 * 80 * 3 * 100 * 7, 2 * 39 * 3 * 7 * 5, 2 * 39 * 11 * 5
    # forward pass and weights of both, and the input of the second
    assert ModelCounts(TwoConvolutionsAndASum).flops(16_100) == 2 * first + 3 * second + product


def one_block(checkpointed: bool = False, window_size: int = 16) -> HybridASRForCTC:
    config = our_config("configs/tiny.json", 32)
    # Four heads are what the bounds below are of: with more heads plain PyTorch keeps more hidden values.
    config.num_lact_heads, config.num_hidden_layers, config.window_size = 4, 1, window_size
    model = HybridASRForCTC(config)
    if checkpointed:
        checkpoint_activations(model)
    return model


@pytest.mark.parametrize(("window_size", "tolerance"), [(-1, 1e-3), (16, 3e-3)])  # windows go by blocks of 32 frames
def test_any_length_follows_from_three(window_size, tolerance):
    counts = ModelCounts(lambda: one_block(window_size=window_size))
    for count in (counts.flops, counts.saved_bytes):
        assert of_seconds(count)(5) == pytest.approx(count(80_000), rel=tolerance)


def test_checkpointing_saves_fewer_bytes_and_computes_more():
    plain, sparing = ModelCounts(one_block), ModelCounts(lambda: one_block(checkpointed=True))
    assert sparing.saved_bytes(32_000) < 0.3 * plain.saved_bytes(32_000)
    assert 1.2 < sparing.flops(32_000) / plain.flops(32_000) < 1.4


def test_kernels_keep_their_inputs_alone_and_bfloat16_halves_them():
    pytest.importorskip("triton", reason="the package triton is not installed: pip install lact-asr[triton]")
    plain, kernels, halved = (
        ModelCounts(one_block, *how).saved_bytes(32_000) for how in ((), (True,), (True, torch.bfloat16))
    )
    assert kernels < 0.85 * plain
    assert 0.5 * kernels < halved < 0.8 * kernels


@pytest.mark.parametrize("size", ["tiny", "small", "hybrid_asr_config"])
def test_the_peer_has_our_size(size):
    ours = our_config(f"configs/{size}.json", 32)
    with torch.device("meta"):
        sizes = [number_of_parameters(model) for model in (HybridASRForCTC(ours), Wav2Vec2ForCTC(peer_config(ours)))]
    assert sizes[0] == pytest.approx(sizes[1], rel=2e-3)


def test_synthetic_batches_depend_on_the_seed_alone_and_pad_little(processor):
    one, same, other = (next(synthetic_batches(processor, 4, 1.0, seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["labels"][:, :5], other["labels"][:, :5])
    lengths = one["attention_mask"].sum(-1)
    assert lengths.min() >= 14_400
    assert lengths.max() <= 16_000
    assert one["labels"].max() < len(processor.vocabulary)


def test_laps_lie_between_marks():
    laps = Laps(torch.device("cpu"), time.perf_counter)
    laps.mark()
    time.sleep(0.02)
    laps.mark()
    first, second = laps.seconds()
    assert first < 0.02 <= second
