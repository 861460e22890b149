"""The benchmark of data loading runs on a corpus with training's flags, and counts the audio that it reads."""

import json

import numpy as np
import pytest
import soundfile

from benchmarks.data_loading import main


@pytest.fixture
def corpus(tmp_path):
    """Six utterances of half a second."""
    for number in range(6):
        soundfile.write(tmp_path / f"{number}.wav", 0.1 * np.random.default_rng(number).standard_normal(8_000), 16_000)
    rows = [{"audio_filepath": f"{number}.wav", "text": "GO"} for number in range(6)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize(("flags", "augmented"), [((), False), (("--noise_colours", "white"), True)])
def test_every_part_is_measured(corpus, capsys, flags, augmented):
    common = [
        "--data_dir",
        corpus,
        "--dataset_type",
        "manifest",
        "--subset",
        "m",
        "--batch_size",
        2,
        "--num_batches",
        2,
    ]
    assert main([str(flag) for flag in (*common, *flags, "--output_dir", corpus / "results")]) == 0
    content = json.loads((corpus / "results" / "data_loading.json").read_text())
    assert content["audio_seconds"] == pytest.approx(2.0)
    rows = {row["part"]: row for row in content["results"]}
    assert set(rows) == {"planning an epoch", "reading", "whole batches"} | ({"augmenting"} if augmented else set())
    whole = rows["whole batches"]
    assert whole["times_real_time"] == pytest.approx(2.0 / whole["cpu_seconds"])
    assert "2 s of audio in 2 batches" in capsys.readouterr().out


def test_an_unknown_subset_is_one_sentence(corpus, capsys):
    assert main(["--data_dir", str(corpus), "--dataset_type", "manifest", "--subset", "n"]) == 2
    assert capsys.readouterr().err.startswith("error: no manifest n.jsonl")
