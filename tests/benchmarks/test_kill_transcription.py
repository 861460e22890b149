"""A transcription that is killed three times gives the file of one that was not, failures and batches included."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks import kill_transcription
from lact_asr.checkpoint import save_checkpoint
from lact_asr.text import build_vocabulary

ROOT = Path(__file__).resolve().parents[2]
FILES = 60


@pytest.fixture
def flags(speaking_model, tmp_path) -> list[str]:
    """Of a transcription with test-time training in batches, of recordings some of which are broken."""
    save_checkpoint(tmp_path / "best_model.pt", speaking_model(), build_vocabulary())
    generator, rows = np.random.default_rng(0), []
    for number in range(FILES):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, 0.1 * generator.standard_normal(generator.integers(6_000, 12_000)), 16_000)
        if number % 13 == 5:  # its header is whole
            path.write_bytes(path.read_bytes()[:3_000])
        rows.append({"audio_filepath": path.name, "text": "A CAT", "id": f"u{number}"})
    (tmp_path / "noise.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--checkpoint", tmp_path / "best_model.pt", "--data_dir", tmp_path, "--subset", "noise", "--device", "cpu",
             "--dataset_type", "manifest", "--greedy", "--use_ttt", "--batch_size", 4)  # fmt: skip
    return [str(flag) for flag in flags]


def test_three_kills_change_nothing(flags, tmp_path):
    command = [sys.executable, "-m", "benchmarks.kill_transcription", "--output_dir", str(tmp_path / "out"), *flags]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    result = json.loads((tmp_path / "out" / "kill_transcription.json").read_text())
    assert (result["results"], result["kills"], result["differing_lines"]) == (FILES, 3, [])
    assert all(0 < resumed < FILES for resumed in result["resumed_from"])
    lines = [json.loads(line) for line in (tmp_path / "out" / "killed.jsonl").read_text().splitlines()[1:]]
    assert {line["id"] for line in lines} == {f"u{number}" for number in range(FILES)}
    assert {line["id"] for line in lines if line["message"]} == {f"u{number}" for number in range(5, FILES, 13)}


def test_seconds_of_compute_are_all_that_may_differ(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"id": "a", "compute_seconds": 1.5e-05, "audio_seconds": 1.0}\n{"id": "b"')
    assert kill_transcription.without_times(path) == [
        b'{"id": "a", "compute_seconds": 0, "audio_seconds": 1.0}\n',
        b'{"id": "b"',
    ]
