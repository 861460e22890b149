"""Whatever the user gives that cannot be used: one clear sentence on stderr, exit code 2, nothing half-written.

Each case prepares files in a folder and returns the flags that replace the defaults of a run that works.
"""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lact_asr.errors import EXIT_BAD_INPUT
from lact_asr.inference.language_models.ngram_training import build_ngram
from lact_asr.inference.results.results_file import read_results

Case = Callable[[Path], dict[str, object]]
CASES: dict[str, tuple[Case, str]] = {}


def case(name: str, sentence: str) -> Callable[[Case], Case]:
    """Register a case and what its sentence must contain."""

    def register(prepare: Case) -> Case:
        CASES[name] = (prepare, sentence)
        return prepare

    return register


def damage(source: Path, target: Path, keep: float | int) -> Path:
    """Copy the first bytes of a file: so many, or that share."""
    content = source.read_bytes()
    target.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    return target


# Recordings


@case("no such file", "no such audio file")
def _(folder):
    return {"audio_file": folder / "none.wav"}


@case("a folder as file", "is a folder, not an audio file")
def _(folder):
    return {"audio_file": folder}


@case("empty file", "is empty (0 bytes)")
def _(folder):
    (folder / "bad.wav").write_bytes(b"")
    return {"audio_file": folder / "bad.wav"}


@case("truncated WAV", "is truncated: its header claims")
def _(folder):
    return {"audio_file": damage(folder / "good.wav", folder / "bad.wav", 0.5)}


@case("truncated FLAC", "truncated or damaged")
def _(folder):
    soundfile.write(folder / "good.flac", soundfile.read(folder / "good.wav")[0], 16_000)
    return {"audio_file": damage(folder / "good.flac", folder / "bad.flac", 0.6)}


@case("only a header's beginning", "truncated or damaged")
def _(folder):
    return {"audio_file": damage(folder / "good.wav", folder / "bad.wav", 20)}


@case("zero-length WAV", "no samples")
def _(folder):
    soundfile.write(folder / "bad.wav", np.zeros(0), 16_000)
    return {"audio_file": folder / "bad.wav"}


@case("all-NaN WAV", "not finite")
def _(folder):
    soundfile.write(folder / "bad.wav", np.full(16_000, np.nan), 16_000, subtype="FLOAT")
    return {"audio_file": folder / "bad.wav"}


@case("shorter than one frame", "too short: 399 samples")
def _(folder):
    soundfile.write(folder / "bad.wav", np.zeros(399), 16_000)
    return {"audio_file": folder / "bad.wav"}


@case("text named .wav", "is not audio")
def _(folder):
    (folder / "bad.wav").write_text("these are words, not waves\n" * 40)
    return {"audio_file": folder / "bad.wav"}


@case("folder without audio", "no audio files in")
def _(folder):
    (folder / "texts").mkdir()
    (folder / "texts" / "notes.txt").write_text("nothing to hear")
    return {"audio_file": None, "audio_dir": folder / "texts"}


@case("no such folder", "no such folder")
def _(folder):
    return {"audio_file": None, "audio_dir": folder / "nowhere"}


# Corpora


def subset(folder: Path, transcript: str | None = "7-1-0000 A CAT\n") -> dict[str, object]:
    """A subset of one chapter with one recording."""
    chapter = folder / "corpus" / "test-tiny" / "7" / "1"
    chapter.mkdir(parents=True)
    soundfile.write(chapter / "7-1-0000.flac", soundfile.read(folder / "good.wav")[0], 16_000)
    if transcript is not None:
        (chapter / "7-1.trans.txt").write_text(transcript)
    return {"audio_file": None, "data_dir": folder / "corpus", "subset": "test-tiny"}


@case("no such corpus", "no such data folder")
def _(folder):
    return {"audio_file": None, "data_dir": folder / "nowhere", "subset": "test-tiny"}


@case("unknown subset", "no subset 'dev-clean'")
def _(folder):
    return {**subset(folder), "subset": "dev-clean"}


@case("empty subset", "subset 'empty' has no usable utterances")
def _(folder):
    flags = subset(folder)
    (folder / "corpus" / "empty").mkdir()
    return {**flags, "subset": "empty"}


@case("missing transcript file and nothing else", "no transcript file")
def _(folder):
    return subset(folder, transcript=None)


@case("missing transcript line and nothing else", "has no line for 7-1-0000.flac")
def _(folder):
    return subset(folder, transcript="")


@case("manifest that is not JSON", "test-tiny.jsonl:2 is not JSON")
def _(folder):
    line = json.dumps({"audio_filepath": "good.wav", "text": "A CAT"})
    (folder / "test-tiny.jsonl").write_text(f"{line}\nTHE CAT\n")
    return {"audio_file": None, "data_dir": folder, "subset": "test-tiny", "dataset_type": "manifest"}


@case("unknown manifest", "no manifest dev.jsonl")
def _(folder):
    return {"audio_file": None, "data_dir": folder, "subset": "dev", "dataset_type": "manifest"}


@case("the only recording is broken", "truncated or damaged")
def _(folder):
    flags = subset(folder)
    (recording,) = folder.rglob("*.flac")
    damage(recording, recording, 0.6)
    return {**flags, "output": folder / "results.jsonl"}


# Checkpoints


def changed_checkpoint(folder: Path, change: Callable[[dict], None]) -> dict[str, object]:
    content = torch.load(folder / "best_model.pt", weights_only=True)
    change(content)
    torch.save(content, folder / "changed.pt")
    return {"checkpoint": folder / "changed.pt"}


@case("no checkpoint", "no checkpoint file")
def _(folder):
    return {"checkpoint": folder / "none.pt"}


@case("empty folder as checkpoint", "is no checkpoint file, no folder of save_pretrained")
def _(folder):
    (folder / "empty").mkdir()
    return {"checkpoint": folder / "empty"}


@case("text as checkpoint", "changed.pt")
def _(folder):
    (folder / "changed.pt").write_text("weights, I promise\n" * 30)
    return {"checkpoint": folder / "changed.pt"}


for kept in (0, 10, 100, 4_000, 0.5, 0.99):

    @case(f"checkpoint truncated to {kept}", "truncated")
    def _(folder, kept=kept):
        return {"checkpoint": damage(folder / "best_model.pt", folder / "changed.pt", kept)}


class LeavesATrace:
    """Unpickling it creates a file: code that a checkpoint must not be able to run."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@case("checkpoint with a pickle inside", "pickled Python objects")
def _(folder):
    return changed_checkpoint(folder, lambda content: content.update(notes=LeavesATrace(folder / "trace")))


@case("checkpoint that is a pickle", "changed.pt")
def _(folder):
    (folder / "changed.pt").write_bytes(pickle.dumps(LeavesATrace(folder / "trace")))
    return {"checkpoint": folder / "changed.pt"}


@case("configuration of impossible value", "'num_attn_heads' is 5 but must divide hidden_size")
def _(folder):
    return changed_checkpoint(folder, lambda content: content["config"].update(num_attn_heads=5))


@case("configuration of impossible type", "'hidden_size' is '16' but must be a whole number")
def _(folder):
    return changed_checkpoint(folder, lambda content: content["config"].update(hidden_size="16"))


@case("vocabulary of another model", "has 33 entries but the model's output has 32")
def _(folder):
    return changed_checkpoint(folder, lambda content: content["vocabulary"].update({"Ä": 32}))


@case("weights of another size", "do not fit its configuration")
def _(folder):
    return changed_checkpoint(folder, lambda content: content["config"].update(intermediate_size=32))


@case("weights that are NaN", "hold NaN or infinity")
def _(folder):
    return changed_checkpoint(folder, lambda content: content["model"]["ctc_head.bias"].fill_(np.nan))


# Language models


@case("language model of another vocabulary", "is of another vocabulary")
def _(folder):
    return {"lm_path": build_ngram(["КОШКА СИДИТ", "СОБАКА СИДИТ ТУТ"], folder / "cyrillic.arpa", order=2)}


@case("not a language model", "is neither an ARPA file")
def _(folder):
    (folder / "lm.arpa").write_text("the cat sat\non the mat\n")
    return {}  # found beside the checkpoint


@case("truncated language model", "is truncated")
def _(folder):
    build_ngram(["A CAT SAT", "A DOG SAT"], folder / "whole.arpa", order=3)
    return {"lm_path": damage(folder / "whole.arpa", folder / "half.arpa", 0.5)}


@case("no such language model", "does not exist")
def _(folder):
    return {"lm_path": folder / "none.arpa"}


# Output


@case("output below a file", "is not a folder")
def _(folder):
    (folder / "taken").write_text("")
    return {"output": folder / "taken" / "results.jsonl"}


@case("output is a folder", "is a folder; --output must name")
def _(folder):
    (folder / "results.jsonl").mkdir()
    return {"output": folder / "results.jsonl"}


@case("results of other settings", "was written with")
def _(folder):
    (folder / "results.jsonl").write_text('{"settings": {"beam_size": "3"}}\n')
    return {"output": folder / "results.jsonl", "resume": True}


# Flags

FLAGS = {
    "masked prediction without its head": (
        {"checkpoint": "no_head.pt", "use_ttt": True, "ttt_loss_type": "masked_prediction"},
        "no masked-prediction head",
    ),
    "unknown TTT loss": ({"ttt_loss_type": "magic"}, "Unknown TTT loss 'magic'"),
    "TTT loss of nothing that adapts": (
        {"use_ttt": True, "ttt_loss_type": "masked_prediction", "ttt_parameters": "output"},
        "does not depend on what adapts (output)",
    ),
    "TTT with sgd": ({"use_ttt": True, "ttt_optimizer": "sgd"}, "needs a learning rate"),
    "no batch": ({"batch_size": 0}, "--batch_size must be 1 or more, not 0"),
    "unknown TTT parameters": ({"use_ttt": True, "ttt_parameters": "norms,brain"}, "Unknown parameter group 'brain'"),
    "TTT mask share": ({"use_ttt": True, "ttt_mask_prob": 1.5}, "between 0 and 1, not 1.5"),
    "TTT chunks": ({"use_ttt": True, "ttt_chunk_size": 2}, "no room for masks of 3"),
    "TTT steps": ({"use_ttt": True, "ttt_steps": -1}, "0 or more steps, not -1"),
    "TTT learning rate": ({"use_ttt": True, "ttt_learning_rate": 0}, "above 0"),
    "no beams": ({"beam_size": 0}, "--beam_size must be 1 or more, not 0"),
    "beam threshold": ({"beam_threshold": -1}, "above 0"),
    "language-model weight": ({"lm_weight": "nan", "lm_path": "english.arpa"}, "lm_weight must be a finite number"),
    "nothing to transcribe": ({"audio_file": None}, "exactly one of --audio_file, --audio_dir and --data_dir"),
    "two things to transcribe": ({"audio_dir": "."}, "exactly one of --audio_file, --audio_dir and --data_dir"),
    "corpus without subset": ({"audio_file": None, "data_dir": "."}, "--data_dir needs --subset"),
    "subset without corpus": ({"subset": "test-clean"}, "--subset needs --data_dir"),
    "greedy with a language model": ({"greedy": True, "lm_path": "english.arpa"}, "--greedy uses no language model"),
    "results over the recording": ({"output": "good.wav"}, "--output good.wav is also read"),
    "subtitles over the recording": ({"output": "good.wav", "output_format": "srt"}, "--output good.wav is also read"),
    "results over the checkpoint": ({"output": "best_model.pt"}, "--output best_model.pt is also read"),
    "results over something else": ({"output": "english.arpa"}, "english.arpa is there already and is no results file"),
    "more transcripts than beams": ({"n_best": 5, "beam_size": 2}, "--n_best 5 needs --beam_size 5 or more"),
    "subtitles of several transcripts": ({"n_best": 2, "output_format": "srt"}, "srt holds one transcript"),
    "resuming what is replaced": ({"resume": True, "overwrite": True, "output": "a.jsonl"}, "leave out one of them"),
    "resuming nothing": ({"resume": True}, "--resume needs --output"),
    "resuming subtitles": ({"resume": True, "output": "a.srt"}, "goes on with JSON-lines results only, not with srt"),
    "no samples": ({"max_samples": 0}, "--max_samples must be 1 or more, not 0"),
}


@pytest.fixture
def folder(tmp_path, audio, saved_checkpoint, language_model, speaking_model, monkeypatch) -> Path:
    """The current folder of each case: a good recording, a good checkpoint, one without TTT, and a language model."""
    from lact_asr.checkpoint import save_checkpoint
    from lact_asr.text import build_vocabulary

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    audio.write(tmp_path / "good.wav")
    shutil.copy(saved_checkpoint, tmp_path)
    shutil.copy(language_model, tmp_path / "english.arpa")
    save_checkpoint(tmp_path / "no_head.pt", speaking_model(enable_ttt=False), build_vocabulary())
    return tmp_path


def run(transcribe, folder: Path, flags: dict[str, object]):
    values = {"checkpoint": folder / "best_model.pt", "audio_file": folder / "good.wav", **flags}
    given = {f"--{name}": value for name, value in values.items() if value is not None}
    return transcribe(*itertools.chain(*([flag] if value is True else [flag, value] for flag, value in given.items())))


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def assert_one_sentence(result, sentence: str) -> None:
    lines = [line for line in result.err.replace("\r", "\n").split("\n") if line.strip() and "%|" not in line]
    assert result.code == EXIT_BAD_INPUT
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    assert sentence in lines[0]
    assert "Traceback" not in result.err
    assert result.out == ""


def test_the_run_that_the_cases_spoil_works(transcribe, folder):
    result = run(transcribe, folder, {})
    assert result.code == 0
    assert result.out.startswith(f"{folder / 'good.wav'}\t")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", CASES)
def test_bad_files(name, transcribe, folder):
    prepare, sentence = CASES[name]
    flags = prepare(folder)
    before = snapshot(folder)
    assert_one_sentence(run(transcribe, folder, flags), sentence)
    assert snapshot(folder) == before


@pytest.mark.parametrize("name", FLAGS)
def test_bad_flags(name, transcribe, folder):
    flags, sentence = FLAGS[name]
    before = snapshot(folder)
    assert_one_sentence(run(transcribe, folder, flags), sentence)
    assert snapshot(folder) == before


def test_unknown_flags_and_choices_are_argparses(folder, capsys):
    from lact_asr.inference.hybrid_asr_inference import main

    for flags in (["--beams", "3"], ["--ttt_optimizer", "magic"], ["--beam_size", "many"]):
        with pytest.raises(SystemExit) as stopped:
            main(["--checkpoint", "best_model.pt", "--audio_file", "good.wav", *flags])
        assert stopped.value.code == EXIT_BAD_INPUT
        assert flags[0] in capsys.readouterr().err


# The rest go on


def test_one_bad_file_of_several(transcribe, folder):
    (folder / "bad.wav").write_bytes(b"")
    result = run(transcribe, folder, {"audio_file": None, "audio_dir": folder, "output": folder / "results.jsonl"})
    assert result.code == 0
    assert [line.split("\t")[0] for line in result.out.splitlines()] == [str(folder / "good.wav")]
    assert result.err.count(f"{folder / 'bad.wav'} is empty") == 1
    assert [scored.failed for scored in read_results(folder / "results.jsonl")] == [True, False]


def test_all_files_bad(transcribe, folder):
    for name in ("a.wav", "b.wav"):
        (folder / "in").mkdir(exist_ok=True)
        (folder / "in" / name).write_bytes(b"")
    result = run(transcribe, folder, {"audio_file": None, "audio_dir": folder / "in"})
    assert result.code == EXIT_BAD_INPUT
    assert result.out == ""
    assert "a.wav is empty" in result.err
    assert result.err.splitlines()[-1] == "error: None of the 2 recordings could be transcribed."


def test_a_corpus_with_every_kind_of_problem(transcribe, folder, librispeech):
    """A broken recording, an empty one, a missing one, a missing line, a chapter without transcripts: two remain."""
    chapters = librispeech / "test-tiny" / "7"
    damage(chapters / "1" / "7-1-0001.flac", chapters / "1" / "7-1-0001.flac", 0.6)
    (chapters / "2" / "7-2-0001.flac").write_bytes(b"")
    with (chapters / "1" / "7-1.trans.txt").open("a") as file:
        file.write("7-1-0002 THERE IS NO RECORDING OF THIS\n")
    shutil.copy(folder / "good.wav", chapters / "1" / "7-1-0003.wav")
    (chapters / "3").mkdir()
    shutil.copy(folder / "good.wav", chapters / "3" / "7-3-0000.wav")
    result = run(
        transcribe,
        folder,
        {"audio_file": None, "data_dir": librispeech, "subset": "test-tiny", "output": folder / "results.jsonl"},
    )
    assert result.code == 0
    assert {scored.id: scored.failed for scored in read_results(folder / "results.jsonl")} == {
        "7-1-0000": False, "7-1-0001": True, "7-2-0000": False,
    }  # fmt: skip
    for reported in ("4 left out", "unreadable audio file: 7-2-0001", "missing audio file: 7-1-0002",
                     "missing transcript line: 7-1-0003", "missing transcript file: 7-3.trans.txt"):  # fmt: skip
        assert reported in result.out
    assert "7-1-0001.flac is truncated or damaged" in result.err
    assert "failed" in result.out
