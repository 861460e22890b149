"""The adaptation benchmark: what it reads, what counts as padding, and its file and table."""

import json

import numpy as np
import pytest
import soundfile

from benchmarks.adaptation import main, padding_share
from lact_asr.checkpoint import save_checkpoint
from lact_asr.text import build_vocabulary


@pytest.fixture
def flags(speaking_model, tmp_path) -> list[str]:
    """Of a random model and three recordings of 0.4, 0.6 and 0.8 seconds."""
    save_checkpoint(tmp_path / "model.pt", speaking_model(), build_vocabulary())
    folder = tmp_path / "corpus" / "test-tiny" / "7" / "1"
    folder.mkdir(parents=True)
    names, generator = [f"7-1-{number:04}" for number in range(3)], np.random.default_rng(0)
    for number, name in enumerate(names):
        soundfile.write(folder / f"{name}.flac", 0.1 * generator.normal(size=6_400 + 3_200 * number), 16_000)
    (folder / "7-1.trans.txt").write_text("".join(f"{name} HELLO\n" for name in names))
    return [
        "--checkpoint", str(tmp_path / "model.pt"), "--data_dir", str(tmp_path / "corpus"), "--subset", "test-tiny",
        "--steps", "1", "--repetitions", "1", "--output_dir", str(tmp_path / "results"),
    ]  # fmt: skip


def test_batches_of_a_corpus(flags, tmp_path, capsys):
    assert main([*flags, "--utterances", "3", "--batch_sizes", "1", "3"]) == 0
    alone, together = json.loads((tmp_path / "results" / "adaptation.json").read_text())["results"]
    assert (alone["padding"], together["padding"]) == (0, pytest.approx(0.25))
    assert list(alone["timings"]) == [
        "plain",
        "1 step, full gradients",
        "1 step, constant updates",
        "1 step, and a frozen layer",
    ]
    assert alone["timings"]["1 step, full gradients"]["times_plain"] > 1 == alone["timings"]["plain"]["times_plain"]
    seconds = [row["timings"]["1 step, full gradients"]["seconds"] for row in (alone, together)]
    assert together["timings"]["1 step, full gradients"]["speedup"] == pytest.approx(seconds[0] / seconds[1])
    assert "| 0.6 s" in capsys.readouterr().out


def test_recordings_cut_to_durations(flags, tmp_path):
    assert main([*flags, "--utterances", "2", "--batch_sizes", "2", "--seconds", "0.3", "0.9"]) == 0
    results = json.loads((tmp_path / "results" / "adaptation.json").read_text())["results"]
    assert [result["audio_seconds"] for result in results] == [0.6, 1.8]
    assert [result["padding"] for result in results] == [0, 0]


def test_too_little_audio_is_said(flags, capsys):
    assert main([*flags, "--utterances", "4"]) == 2
    assert main([*flags, "--utterances", "2", "--seconds", "1.0"]) == 2
    assert capsys.readouterr().err.count("has not audio enough") == 2


def test_padding_by_hand():
    recordings = [np.zeros(size) for size in (4, 3, 2, 2)]
    assert padding_share(recordings, 1) == 0
    assert padding_share(recordings, 2) == pytest.approx(1 / 12)
    assert padding_share(recordings, 4) == pytest.approx(5 / 16)
