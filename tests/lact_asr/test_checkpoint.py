"""Self-contained checkpoints: exact round trips, and one clear sentence for everything that cannot be used."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from lact_asr.checkpoint import FORMAT, load_checkpoint, load_torch_file, save_checkpoint, save_file_atomically
from lact_asr.errors import InputError
from lact_asr.processing_hybrid_asr import HybridASRProcessor

VOCABULARY = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", "'", "A", "B", "C"])}


@pytest.fixture
def model(tiny_model):
    return tiny_model(enable_ttt=True, use_momentum=True, lact_chunk_size=6)


@pytest.fixture
def checkpoint(model, tmp_path) -> Path:
    path = tmp_path / "runs" / "best_model.pt"
    save_checkpoint(path, model, VOCABULARY, {"step": 12, "wer": 0.25, "folder": tmp_path})
    return path


# Round trips


@torch.no_grad()
def test_a_file_loads_exactly(model, checkpoint, tmp_path):
    loaded = load_checkpoint(checkpoint)
    audio = torch.randn(2, 3_000)
    assert torch.equal(loaded.model(audio).logits, model(audio).logits)
    assert not loaded.model.training
    assert loaded.model.config.to_dict() == model.config.to_dict()
    assert loaded.processor.vocabulary == VOCABULARY
    assert loaded.notes == {"step": 12, "wer": 0.25, "folder": str(tmp_path)}


@torch.no_grad()
def test_a_saved_folder_loads_exactly(model, tmp_path):
    model.save_pretrained(tmp_path)
    HybridASRProcessor.from_vocabulary(VOCABULARY).save_pretrained(tmp_path)
    loaded = load_checkpoint(tmp_path)
    audio = torch.randn(1, 3_000)
    assert torch.equal(loaded.model(audio).logits, model(audio).logits)
    assert loaded.processor.vocabulary == VOCABULARY


def test_normalisation_is_the_configurations_choice(tiny_model, tmp_path):
    for do_normalize in (True, False):
        save_checkpoint(tmp_path / "a.pt", tiny_model(do_normalize=do_normalize), VOCABULARY)
        assert load_checkpoint(tmp_path / "a.pt").processor.feature_extractor.do_normalize is do_normalize


def test_the_file_holds_plain_values_and_tensors_only(checkpoint):
    def kinds(value) -> set[type]:
        if isinstance(value, dict):
            return {type(value)}.union(*(kinds(entry) for entry in value.values()))
        if isinstance(value, (list, tuple)):
            return {type(value)}.union(*(kinds(entry) for entry in value))
        return {type(value)}

    content = torch.load(checkpoint, weights_only=True)
    assert content["format"] == FORMAT
    assert kinds(content) <= {dict, list, str, int, float, bool, type(None), torch.Tensor}


def test_saving_over_a_file_leaves_no_other_file(model, checkpoint):
    save_checkpoint(checkpoint, model, VOCABULARY, {"step": 13})
    assert load_checkpoint(checkpoint).notes == {"step": 13}
    assert os.listdir(checkpoint.parent) == ["best_model.pt"]


def test_a_failed_save_leaves_the_old_file(checkpoint):
    before = checkpoint.read_bytes()
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        save_file_atomically({"function": lambda: None}, checkpoint)
    assert checkpoint.read_bytes() == before
    assert os.listdir(checkpoint.parent) == ["best_model.pt"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_disk_that_is_full_half_way_leaves_the_old_file(model, checkpoint, share):
    before = checkpoint.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * len(before)), limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(checkpoint, model, VOCABULARY, {"step": 13})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.read_bytes() == before
    assert os.listdir(checkpoint.parent) == ["best_model.pt"]


# Files that cannot be used


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kept", [0, 1, 4, 100, 5_000, 0.3, 0.7, 0.99, -100, -1])
def test_truncated_files(kept, checkpoint):
    """Cut after so many bytes, at that share, or so many bytes before the end."""
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert_refused(checkpoint, "truncated|damaged|empty")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_overwritten_bytes_never_pass_as_another_error(share, checkpoint):
    """Damage inside: refused with a sentence, or, where it hits bytes that no checksum covers, loaded."""
    content = bytearray(checkpoint.read_bytes())
    start = int(share * len(content))
    content[start : start + 200] = bytes(range(200))
    checkpoint.write_bytes(content)
    with contextlib.suppress(InputError):
        load_checkpoint(checkpoint)


class LeavesATrace:
    """Unpickling it would create a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_that_hold_a_pickle_are_refused_without_running_it(checkpoint, tmp_path):
    trace = tmp_path / "trace"
    content = torch.load(checkpoint, weights_only=True)
    for damage in ({**content, "notes": LeavesATrace(trace)}, LeavesATrace(trace)):
        torch.save(damage, checkpoint)
        assert_refused(checkpoint, "holds pickled Python objects|damaged")
        torch.save(damage, checkpoint, _use_new_zipfile_serialization=False)
        assert_refused(checkpoint, "holds pickled Python objects|damaged")
        checkpoint.write_bytes(pickle.dumps(damage))
        assert_refused(checkpoint, "holds pickled Python objects|damaged|not a checkpoint")
    assert not trace.exists()
    torch.save(LeavesATrace(trace), checkpoint)
    torch.load(checkpoint, weights_only=False)
    assert trace.exists(), "the trap does not work"


def without(key: str):
    return lambda content: {name: value for name, value in content.items() if name != key}


def with_weights(change):
    return lambda content: {**content, "model": change(dict(content["model"]))}


def drop_one(weights: dict) -> dict:
    del weights["ctc_head.bias"]
    return weights


CONTENTS = {
    "another format": (lambda content: {**content, "format": "something else"}, "not a checkpoint written by"),
    "no format": (without("format"), "not a checkpoint written by"),
    "weights alone": (lambda content: content["model"], "not a checkpoint written by"),
    "a list": (lambda content: [content], "not a checkpoint written by"),
    "a tensor": (lambda content: torch.zeros(3), "not a checkpoint written by"),
    "no configuration": (without("config"), "lacks 'config'"),
    "no vocabulary": (without("vocabulary"), "lacks 'vocabulary'"),
    "no weights": (without("model"), "lacks 'model'"),
    "impossible configuration": (
        lambda content: {**content, "config": {**content["config"], "hidden_size": 0}},
        "'hidden_size' is 0",
    ),
    "configuration of another size": (
        lambda content: {**content, "config": {**content["config"], "intermediate_size": 25}},
        "do not fit its configuration",
    ),
    "a weight is missing": (with_weights(drop_one), "do not fit its configuration.*ctc_head.bias"),
    "a weight too many": (with_weights(lambda weights: {**weights, "extra": torch.zeros(1)}), "do not fit.*extra"),
    "a weight that is no tensor": (with_weights(lambda weights: {**weights, "ctc_head.bias": 5}), "do not fit"),
    "vocabulary of another size": (
        lambda content: {**content, "vocabulary": {**VOCABULARY, "D": 9}},
        "has 10 entries but the model's output has 9",
    ),
    "doubled ids": (lambda content: {**content, "vocabulary": {**VOCABULARY, "C": 7}}, "each used once"),
    "ids that are no numbers": (
        lambda content: {**content, "vocabulary": {**VOCABULARY, "C": "8"}},
        "each used once",
    ),
    "no blank": (
        lambda content: {**content, "vocabulary": {"x": 0, **without("<pad>")(VOCABULARY)}},
        "lacks the special token '<pad>'",
    ),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_contents_that_do_not_belong_together(case, checkpoint):
    change, message = CONTENTS[case]
    torch.save(change(torch.load(checkpoint, weights_only=True)), checkpoint)
    assert_refused(checkpoint, message)


def test_missing_files_and_files_of_another_kind(tmp_path):
    assert_refused(tmp_path / "none.pt", "no checkpoint file")
    (tmp_path / "text.pt").write_text("this is a text file named .pt\n" * 50)
    assert_refused(tmp_path / "text.pt", "damaged")
    (tmp_path / "audio.wav").write_bytes(b"RIFF" + bytes(1_000))
    assert_refused(tmp_path / "audio.wav", "damaged")
    with pytest.raises(InputError, match="no checkpoint file"):
        load_torch_file(tmp_path)


def test_folders_that_cannot_be_used(model, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else the hub is tried, with retries
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", "no checkpoint file")
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    assert_refused(folder, "or its processor cannot be loaded")  # there is none
    HybridASRProcessor.from_vocabulary({**VOCABULARY, "D": 9}).save_pretrained(folder)
    assert_refused(folder, "vocabulary in .* has 10 entries")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000])
    assert_refused(folder, "cannot be loaded")
    with pytest.raises(InputError, match=r"nobody/nothing.* …\)"):
        load_checkpoint("nobody/nothing")  # the hub's long reason ends with a whole word


def test_the_hub_is_not_asked_for_mistyped_folders(tmp_path, monkeypatch, capsys):
    """It would take half a minute to say no where it cannot be reached."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints" / "hybrid").mkdir(parents=True)
    asked = []

    def ask(name, **options):
        asked.append(name)
        raise OSError("not found")

    monkeypatch.setattr(AutoConfig, "from_pretrained", ask)
    for name, missing in {
        "checkpoints/hybird": "checkpoints/hybird",
        "checkpoint/hybrid/run": "checkpoint",
        "hybird/": "hybird",
        "./hybird": "hybird",
        "~/hybrid": "~",
        str(tmp_path / "runs" / "hybrid"): str(tmp_path / "runs"),
    }.items():
        with pytest.raises(InputError, match=f"^There is no folder {re.escape(missing)},"):
            load_checkpoint(name)
    assert (asked, capsys.readouterr().err) == ([], "")
    for name in ("hybird", "someone/hybrid"):
        with pytest.raises(InputError, match="no model that can be reached"):
            load_checkpoint(name)
        assert capsys.readouterr().err == f"There is no folder {name} here; asking the Hugging Face hub.\n"
    assert asked == ["hybird", "someone/hybrid"]


def test_a_folder_loads_without_warnings(model, tmp_path):
    """In a process of its own: importing anything from lact_asr itself registers the model's type."""
    model.save_pretrained(tmp_path)
    HybridASRProcessor.from_vocabulary(VOCABULARY).save_pretrained(tmp_path)
    command = "import sys; from lact_asr.checkpoint import load_checkpoint; load_checkpoint(sys.argv[1])"
    result = subprocess.run([sys.executable, "-c", command, tmp_path], capture_output=True, text=True)
    assert (result.returncode, "You are using a model of type" in result.stderr) == (0, False), result.stderr
