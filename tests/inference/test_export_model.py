"""A run becomes a folder for the hub that loads, and whose card says what the run's own files say."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from lact_asr.atomic_files import write_json
from lact_asr.checkpoint import load_checkpoint, save_checkpoint, save_file_atomically
from lact_asr.inference.export_model import main
from lact_asr.inference.results.results_file import ResultsWriter
from lact_asr.inference.results.utterance_result import UtteranceResult
from lact_asr.inference.ttt.statistics import STATISTICS_NAME
from lact_asr.text import build_vocabulary
from lact_asr.training.training_state import FORMAT as TRAINING_STATE_FORMAT

RUN = {
    "command": [
        "/home/someone/.venv/bin/python",
        "training/train_hybrid_asr.py",
        "--data_dir",
        "/home/someone/LibriSpeech",
    ],
    "arguments": {
        "data_dir": "/home/someone/LibriSpeech",
        "train_subset": "train-clean-100",
        "val_subset": "dev-clean",
    },
    "git_commit": "0123abc",
    "python": "3.11.7",
    "packages": {"torch": "2.13.0"},
    "machine": "x86_64, 2 cores, no GPU",
}


@pytest.fixture(scope="module")
def run(speaking_model, language_model, tmp_path_factory) -> Path:
    """A run's folder: checkpoint, language model and its weights, description, and results with and without TTT."""
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(folder / "best_model.pt", speaking_model(), build_vocabulary(), {"step": 700, "wer": 0.125})
    shutil.copy(language_model, folder / "lm.arpa")
    weights = {"lm_weight": 0.6, "word_score": 1.0}
    write_json(folder / "lm_weights.json", {"best": weights, "tuned_on": "dev-clean (/home/someone/LibriSpeech)"})
    write_json(folder / "run.json", RUN)
    (folder / STATISTICS_NAME).write_bytes(b"statistics")
    settings = {
        "subset": "test-clean",
        "beam_size": "50",
        "lm_path": "lm.arpa",
        "use_ttt": "True",
        "ttt_loss_type": "entropy",
    }
    with ResultsWriter(folder / "ttt.jsonl", settings) as writer:
        writer.write(
            UtteranceResult.scored(
                "a", "THE CAT SAT ON", "THE CAT SAT IN", "A CAT AT IN", audio_seconds=2.0, compute_seconds=1.0
            )
        )
    return folder


def export(capsys, *flags: object) -> tuple[int, str]:
    return main([str(flag) for flag in flags]), capsys.readouterr().err


@torch.no_grad()
def test_the_folder_is_the_model(run, tmp_path, capsys):
    folder = tmp_path / "hub" / "hybrid"
    assert export(capsys, run, folder)[0] == 0
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "processor_config.json", "tokenizer_config.json", "vocab.json",
        "lm.arpa", "lm_weights.json", STATISTICS_NAME,
    }  # fmt: skip
    before, after = load_checkpoint(run), load_checkpoint(folder)
    samples = torch.randn(1, 8000)
    torch.testing.assert_close(after.model(samples).logits, before.model(samples).logits, rtol=0, atol=0)
    assert after.processor.vocabulary == before.processor.vocabulary
    assert json.loads((folder / "lm_weights.json").read_text()) == {"best": {"lm_weight": 0.6, "word_score": 1.0}}
    assert (folder / "lm.arpa").read_bytes() == (run / "lm.arpa").read_bytes()


@torch.no_grad()
@pytest.mark.parametrize("training_state", [False, True])
def test_the_file_that_is_named_is_exported(run, speaking_model, tmp_path, capsys, training_state):
    """Beside best_model.pt lie other models and the states of other steps."""
    folder = shutil.copytree(run, tmp_path / "run")
    other = speaking_model()
    for parameter in other.parameters():
        parameter.mul_(0.5)
    path = folder / "checkpoint_00000300.pt"
    if training_state:
        state = {"model": other.state_dict(), "progress": {"step": 300}, "vocabulary": build_vocabulary()}
        save_file_atomically({"format": TRAINING_STATE_FORMAT, **state}, path)
        assert "whose configuration cannot be read" in export(capsys, path, tmp_path / "hub")[1]
        other.config.to_json_file(folder / "config.json", use_diff=False)
    else:
        save_checkpoint(path, other, build_vocabulary(), {"step": 300})
    assert export(capsys, path, tmp_path / "hub")[0] == 0
    for name, weight in load_checkpoint(tmp_path / "hub").model.state_dict().items():
        torch.testing.assert_close(weight, other.state_dict()[name], rtol=0, atol=0)
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "step 300" in card
    assert "the lowest validation WER" not in card
    assert (tmp_path / "hub" / "lm_weights.json").is_file()


def test_the_card_says_what_the_run_was(run, tmp_path, capsys):
    folder = tmp_path / "hybrid"
    assert export(capsys, run, folder, "--results", run / "ttt.jsonl", "--license", "apache-2.0")[0] == 0
    card = ModelCard.load(folder / "README.md")
    assert (card.data.pipeline_tag, card.data.license) == ("automatic-speech-recognition", "apache-2.0")
    rates = {row.metric_name: row.metric_value for row in card.data.eval_results if row.dataset_name == "test-clean"}
    assert rates == {
        "WER of 1 utterance, 50 beams and language model, TTT (entropy)": 25.0,
        "WER of 1 utterance, 50 beams and language model, the same without TTT": 75.0,
    }
    for fact in (
        "train-clean-100 of LibriSpeech",
        "step 700",
        "12.5%",
        "torch 2.13.0",
        "0123abc",
        "train_hybrid_asr.py",
    ):
        assert fact in card.text
    (line,) = [line for line in card.text.splitlines() if line.startswith("| test-clean")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[0] == "test-clean, 50 beams and language model, TTT (entropy)"
    assert cells[3:5] == ["25.00", "75.00"]  # with and without TTT
    assert "/home/someone" not in card.content
    assert "{" not in card.text


def test_the_command_of_the_card_works_without_a_head(speaking_model, audio, transcribe, tmp_path, capsys, monkeypatch):
    save_checkpoint(tmp_path / "run" / "best_model.pt", speaking_model(enable_ttt=False), build_vocabulary())
    monkeypatch.chdir(tmp_path)
    audio.write(tmp_path / "a.wav")
    assert export(capsys, "run", "hybrid")[0] == 0
    lines = (tmp_path / "hybrid" / "README.md").read_text().splitlines()
    (command,) = [line for line in lines if line.startswith("lact-asr transcribe ")]
    result = transcribe(*shlex.split(command)[2:])
    assert result.code == 0, result.err


def test_a_checkpoint_alone_is_exported_and_its_card_says_what_is_not_known(saved_checkpoint, tmp_path, capsys):
    folder = tmp_path / "hybrid"
    assert export(capsys, saved_checkpoint.parent, folder)[0] == 0
    text = (folder / "README.md").read_text()
    assert "was not beside the checkpoint" in text
    assert "None were given." in text
    assert "lm.arpa" not in text
    assert export(capsys, folder, tmp_path / "again")[0] == 0


def test_what_cannot_be_exported_leaves_no_folder(run, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    with ResultsWriter(tmp_path / "files.jsonl", {"audio_file": "a.wav"}) as writer:
        writer.write(UtteranceResult("a", None, "TEXT", audio_seconds=1.0))
    broken = shutil.copytree(run, tmp_path / "broken")
    (broken / "run.json").write_text(json.dumps({"command": []}))
    for flags, reason in (
        ((run, tmp_path / "there"), "exists already"),
        ((run, tmp_path / "new", "--results", tmp_path / "files.jsonl"), "holds no scored corpus subset"),
        ((broken, tmp_path / "new"), "it is not a training run's description"),
        ((tmp_path / "nothing", tmp_path / "new"), "nothing"),
        ((run, tmp_path / "new", "--push_to_hub", "a b/c"), "takes USER/NAME"),
    ):
        code, err = export(capsys, *flags)
        assert (code, reason in err, len(err.splitlines())) == (2, True, 1), err
        assert not (tmp_path / "new").exists()


def test_a_hub_that_cannot_be_reached_leaves_the_folder(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    code, err = export(capsys, run, tmp_path / "hybrid", "--push_to_hub", "someone/hybrid")
    assert (code, "is complete but could not be uploaded to someone/hybrid" in err) == (2, True), err
    assert ModelCard.load(tmp_path / "hybrid" / "README.md").data.model_name == "someone/hybrid"
