"""Choosing the language model's weights: the grid, what is written beside the checkpoint, and who reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import pytest

from lact_asr.errors import EXIT_BAD_INPUT
from lact_asr.inference.language_models.ngram_training import build_ngram
from lact_asr.inference.results.results_file import read_results
from lact_asr.inference.results.summary import summarise
from lact_asr.inference.tune_language_model import main
from lact_asr.inference.utterances import spread_evenly

WEIGHTS, SCORES = (0.1, 1.0), (-20.0, 3.0)


@pytest.fixture
def folder(tmp_path, saved_checkpoint, language_model) -> Path:
    shutil.copy(saved_checkpoint, tmp_path)
    shutil.copy(language_model, tmp_path / "lm.arpa")
    return tmp_path


@pytest.fixture
def tune(folder, librispeech, capsys):
    def run(*flags: object) -> SimpleNamespace:
        capsys.readouterr()
        paths = ["--checkpoint", folder / "best_model.pt", "--data_dir", librispeech, "--subset", "test-tiny"]
        grid = ["--lm_weights", "0.1,1", "--word_scores=-20,3", "--beam_size", 10, "--processes", 1]
        code = main([str(flag) for flag in (*paths, *grid, *flags)])
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run


def test_the_best_of_the_grid_is_written_and_used(tune, transcribe, folder, librispeech):
    """Each row equals what the inference command scores with those weights, and the command takes up the best."""
    tuned = tune()
    assert tuned.code == 0
    written = json.loads((folder / "lm_weights.json").read_text())
    grid = {(row["lm_weight"], row["word_score"]): row["wer"] for row in written["grid"]}
    assert set(grid) == {(weight, score) for weight in WEIGHTS for score in SCORES}
    assert written["utterances"] == 4
    assert written["language_model"] == "lm.arpa"
    best = (written["best"]["lm_weight"], written["best"]["word_score"])
    assert grid[best] == min(grid.values()) < max(grid.values())
    assert f"Best: lm_weight {best[0]:g}, word_score {best[1]:g}" in tuned.out

    output = folder / "r.jsonl"
    flags = ["--checkpoint", folder / "best_model.pt", "--data_dir", librispeech, "--subset", "test-tiny"]
    flags += ["--beam_size", 10, "--output", output]
    for (weight, score), rate in grid.items():
        assert transcribe(*flags, "--lm_weight", weight, f"--word_score={score}").code == 0
        assert summarise(read_results(output)).words.rate == pytest.approx(rate)
    assert f"(weight {best[0]:g}, word score {best[1]:g})" in transcribe(*flags).err


def test_processes_change_nothing_and_the_grid_is_drawn(tune, folder):
    assert tune().code == 0
    alone = (folder / "lm_weights.json").read_bytes()
    (folder / "lm_weights.png").unlink()
    tuned = tune("--processes", 2)
    assert tuned.code == 0
    assert (folder / "lm_weights.json").read_bytes() == alone
    assert f"Heat map: {folder / 'lm_weights.png'}" in tuned.out
    height, width, _ = matplotlib.image.imread(folder / "lm_weights.png").shape
    assert min(height, width) > 200


def test_bad_recordings_are_left_out(tune, folder, librispeech):
    (broken,) = librispeech.rglob("7-1-0001.flac")
    broken.write_bytes(broken.read_bytes()[:3_000])
    tuned = tune()
    assert tuned.code == 0
    assert "7-1-0001: " in tuned.err
    assert json.loads((folder / "lm_weights.json").read_text())["utterances"] == 3


def test_samples_are_spread_over_the_corpus(tune, folder):
    assert tune("--max_samples", 2).code == 0
    assert json.loads((folder / "lm_weights.json").read_text())["utterances"] == 2
    assert spread_evenly(list(range(10)), 4) == [0, 2, 5, 7]
    assert spread_evenly(list(range(3)), 3) == spread_evenly(list(range(3)), 9) == [0, 1, 2]


def test_weights_of_another_language_model_are_not_used(tune, transcribe, folder, audio):
    other = build_ngram(["A CAT", "THE DOG SAT"], folder / "elsewhere" / "other.arpa", order=2)
    assert tune("--lm_path", other).code == 0
    written = json.loads((folder / "lm_weights.json").read_text())
    assert written["language_model"] == str(other)
    best = f"(weight {written['best']['lm_weight']:g}, word score {written['best']['word_score']:g})"
    flags = ["--checkpoint", folder / "best_model.pt", "--audio_file", audio.write(folder / "a.wav")]
    assert "(weight 0.5, word score 1.5)" in transcribe(*flags).err
    assert best in transcribe(*flags, "--lm_path", other).err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--lm_path", "none"], "There is no lm.arpa beside"),
        (["--lm_path", "missing.arpa"], "does not exist"),
        (["--subset", "dev-clean"], "no subset 'dev-clean'"),
        (["--beam_size", "0"], "beam_size must be at least 1"),
        (["--checkpoint", "missing.pt"], "no checkpoint file missing.pt"),
    ],
)
def test_bad_input(tune, folder, flags, sentence):
    tuned = tune(*flags)
    assert tuned.code == EXIT_BAD_INPUT
    (line,) = tuned.err.splitlines()
    assert line.startswith("error: ")
    assert sentence in line
    assert not (folder / "lm_weights.json").exists()


def test_a_folder_in_the_way(tune, folder):
    (folder / "lm_weights.json").mkdir()
    tuned = tune()
    assert tuned.code == EXIT_BAD_INPUT
    assert tuned.err.splitlines()[-1] == f"error: {folder / 'lm_weights.json'} cannot be written: Is a directory."
    assert not list(folder.glob(".*.tmp"))


def test_impossible_numbers_are_argparses(tune, capsys):
    for flags in (["--max_samples", "0"], ["--lm_weights", "a,b"]):
        with pytest.raises(SystemExit) as stopped:
            tune(*flags)
        assert stopped.value.code == EXIT_BAD_INPUT
        assert flags[0] in capsys.readouterr().err
