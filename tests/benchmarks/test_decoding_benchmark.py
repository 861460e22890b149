"""The decoding benchmark: decoders on the same log-probabilities, and its files."""

import json

import numpy as np
import pytest
import soundfile

from benchmarks.decoding import PLAIN, main
from lact_asr.checkpoint import save_checkpoint
from lact_asr.inference.language_models.ngram_training import build_ngram
from lact_asr.text import build_vocabulary

pytest.importorskip("pyctcdecode")


def test_decoders_side_by_side(speaking_model, tmp_path, capsys):
    checkpoint = tmp_path / "best_model.pt"
    save_checkpoint(checkpoint, speaking_model(), build_vocabulary())
    build_ngram(["THE CAT SAT", "A DOG SAT"], tmp_path / "lm.arpa")
    folder = tmp_path / "corpus" / "test-tiny" / "7" / "1"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).normal(size=16_000) / 10
    soundfile.write(folder / "7-1-0000.flac", noise, 16_000)
    (folder / "7-1.trans.txt").write_text("7-1-0000 THE CAT SAT\n")
    flags = ["--checkpoint", checkpoint, "--data_dir", tmp_path / "corpus", "--subset", "test-tiny", "--repeats", 1]
    flags += ["--decoders", "greedy", "--output_dir", tmp_path / "out"]
    assert main([str(flag) for flag in flags]) == 0
    (measured,) = json.loads((tmp_path / "out" / "decoding.json").read_text())["measured"]
    assert (measured["words"], measured["audio_seconds"], measured["frames_per_second"]) == (3, 1.0, 80.0)
    plain, greedy = measured["decoders"][PLAIN], measured["decoders"]["greedy"]
    assert plain["speed_against_plain"] == 1.0
    assert greedy["speed_against_plain"] == pytest.approx(plain["cpu_seconds"] / greedy["cpu_seconds"])
    assert greedy["words_per_second"] == pytest.approx(3 / greedy["cpu_seconds"])
    assert (tmp_path / "out" / "decoding.md").read_text() in capsys.readouterr().out
