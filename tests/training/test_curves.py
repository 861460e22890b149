"""The picture of a run is drawn from its log, whatever state that is in, and never stops training."""

import builtins
import json

import pytest

from lact_asr.training.curves import CURVES_NAME, draw_curves, read_curves


@pytest.fixture
def log(tmp_path):
    events = [
        {"event": "train", "step": 1, "ctc_loss": 5.0, "learning_rate": 1e-4, "ttt_loss": None},
        {"event": "train", "step": 2, "ctc_loss": 3.0, "learning_rate": 2e-4},
        {"event": "validation", "step": 2, "wer": 1.0, "cer": 0.9, "loss": 4.2},
    ]
    path = tmp_path / "training_log.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "tra')
    return path


def test_curves_are_read_up_to_a_cut_line(log):
    curves = read_curves(log)
    assert curves["train", "ctc_loss"] == [(1, 5.0), (2, 3.0)]
    assert curves["validation", "wer"] == [(2, 1.0)]
    assert ("train", "ttt_loss") not in curves


def test_a_picture_is_written(log):
    pytest.importorskip("matplotlib", reason="the package matplotlib is not installed")
    draw_curves(log.parent)
    assert (log.parent / CURVES_NAME).read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in log.parent.iterdir()} == {log.name, CURVES_NAME}


def test_without_matplotlib_or_with_a_full_disk_training_goes_on(log, monkeypatch, caplog):
    original = builtins.__import__

    def without_matplotlib(name, *arguments, **keywords):
        if name.startswith("matplotlib"):
            raise ImportError("No module named 'matplotlib'")
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    draw_curves(log.parent)
    assert "no training_curves.png: No module named 'matplotlib'" in caplog.text
    assert not (log.parent / CURVES_NAME).exists()


def test_training_draws_at_its_validations(finished_run):
    assert (finished_run.folder / CURVES_NAME).read_bytes().startswith(b"\x89PNG")
