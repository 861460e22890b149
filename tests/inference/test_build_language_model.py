"""The command that builds language models: vocabulary, pruning, KenLM's programs."""

import gzip
import os
import re
import shutil
import stat
from pathlib import Path

import pytest

from lact_asr.errors import EXIT_BAD_INPUT, InputError
from lact_asr.inference.build_language_model import main
from lact_asr.inference.language_models.kenlm_programs import estimate_with_lmplz
from lact_asr.inference.language_models.language_model import load_language_model
from lact_asr.inference.language_models.ngram_training import build_ngram

pytest.importorskip("kaldingram")
kenlm = pytest.importorskip("kenlm")

TEXT = [
    f"{subject} {verb} {thing}"
    for subject in ("the bird", "my sister", "an old man", "every bell")
    for verb in ("sings in", "walks to", "looks at")
    for thing in ("the garden", "a green river", "my house")
]


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(TEXT))
    return path


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"{program}, a program of KenLM's, is not on the path"
    )


def build(text, output, *flags) -> int:
    return main([str(flag) for flag in ("--transcripts", text, "--output", output, *flags)])


def ngram_counts(path) -> list[int]:
    return [int(count) for count in re.findall(r"ngram \d+=(\d+)", path.read_text())]


def distribution(model, history) -> float:
    """The sum of the probabilities of all words after a history."""
    state, following = kenlm.State(), kenlm.State()
    model.model.BeginSentenceWrite(state)
    for word in history:
        model.model.BaseScore(state, word, following)
        state, following = following, kenlm.State()
    return sum(
        10 ** model.model.BaseScore(state, word, kenlm.State()) for word in (*sorted(model.words), "</s>", "<unk>")
    )


def test_a_limited_vocabulary_leaves_a_proper_distribution(text, tmp_path, capsys):
    assert build(text, tmp_path / "lm.arpa", "--vocabulary_size", 6, "--held_out", text) == 0
    assert "3-gram model of 6 words from 36 sentences" in (printed := capsys.readouterr().out)
    assert "held-out text: " in printed
    model = load_language_model(tmp_path / "lm.arpa")
    assert {"THE", "MY"} < model.words
    for history in ((), ("THE",), ("AT", "MY"), ("ZEBRA",)):
        assert distribution(model, history) == pytest.approx(1, abs=1e-4)


def test_a_word_list_is_kept(text, tmp_path, capsys):
    (tmp_path / "words.txt").write_text("bird\nhouse\nzebra\n")
    assert build(text, tmp_path / "lm.arpa", "--word_list", tmp_path / "words.txt") == 0
    assert load_language_model(tmp_path / "lm.arpa").words == {"BIRD", "HOUSE"}
    (tmp_path / "words.txt").write_text("zebra\n")
    assert build(text, tmp_path / "lm.arpa", "--word_list", tmp_path / "words.txt") == EXIT_BAD_INPUT
    assert "no word of" in capsys.readouterr().err


def test_pruning_leaves_out_n_grams_and_keeps_the_distribution(text, tmp_path):
    assert build(text, tmp_path / "all.arpa") == 0
    assert build(text, tmp_path / "some.arpa", "--prune_threshold", 1e-2) == 0
    everything, pruned = ngram_counts(tmp_path / "all.arpa"), ngram_counts(tmp_path / "some.arpa")
    assert pruned[0] == everything[0]
    assert 0 < pruned[2] < everything[2]
    model = load_language_model(tmp_path / "some.arpa")
    for history in ((), ("THE",), ("LOOKS", "AT")):
        assert distribution(model, history) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--vocabulary_size", 0], "--vocabulary_size must be 1 or more"),
        (["--prune_threshold", 2], "--prune_threshold must be from 0"),
        (["--estimator", "lmplz"], "lmplz is not on the path"),
    ],
)
def test_bad_input(text, tmp_path, capsys, monkeypatch, flags, sentence):
    monkeypatch.setenv("PATH", "")
    assert build(text, tmp_path / "lm.arpa", *flags) == EXIT_BAD_INPUT
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "lm.arpa").exists()


def test_a_binary_needs_build_binary(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert build(text, tmp_path / "lm.bin") == EXIT_BAD_INPUT
    assert "build_binary is not on the path" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
    unread = iter(TEXT)
    with pytest.raises(InputError, match="build_binary is not on the path"):
        build_ngram(unread, tmp_path / "lm.bin")
    assert list(unread) == TEXT  # it was said before anything was estimated


def test_what_a_program_of_kenlms_complains_of_is_said(text, tmp_path, capsys, monkeypatch):
    program = tmp_path / "bin" / "build_binary"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'no space left' >&2\nexit 1\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    assert build(text, tmp_path / "lm.bin") == EXIT_BAD_INPUT
    assert "build_binary failed: no space left" in capsys.readouterr().err
    assert not (tmp_path / "lm.bin").exists()


@needs("lmplz")
def test_lmplz_estimates_what_kaldingram_does(text, tmp_path, capsys):
    assert build(text, tmp_path / "lmplz.arpa", "--estimator", "lmplz", "--held_out", text) == 0
    assert "3-gram model of" in capsys.readouterr().out
    assert build(text, tmp_path / "kaldingram.arpa") == 0
    ours, theirs = (load_language_model(tmp_path / f"{name}.arpa") for name in ("kaldingram", "lmplz"))
    assert ours.words == theirs.words
    assert ngram_counts(tmp_path / "lmplz.arpa") == ngram_counts(tmp_path / "kaldingram.arpa")
    for history in ((), ("THE",), ("LOOKS", "AT")):
        assert distribution(theirs, history) == pytest.approx(1, abs=1e-4)
    perplexities = [model.measure([line.upper() for line in TEXT]).perplexity for model in (ours, theirs)]
    assert perplexities[1] == pytest.approx(
        perplexities[0], rel=0.3
    )  # modified Kneser-Ney against one discount an order


@needs("lmplz")
def test_lmplz_takes_a_vocabulary_and_a_pruning(text, tmp_path):
    flags = ("--estimator", "lmplz", "--vocabulary_size", 6)
    assert build(text, tmp_path / "lm.arpa", *flags) == 0
    assert build(text, tmp_path / "pruned.arpa", *flags, "--prune_threshold", 1e-2) == 0
    model = load_language_model(tmp_path / "lm.arpa")
    assert len(model.words) == 6
    assert distribution(model, ("THE",)) == pytest.approx(1, abs=1e-4)
    assert sum(ngram_counts(tmp_path / "pruned.arpa")) < sum(ngram_counts(tmp_path / "lm.arpa"))


@needs("lmplz")
def test_lmplz_writes_the_file_itself_and_its_compressed_form(text, tmp_path):
    estimate_with_lmplz([line.upper() for line in TEXT], tmp_path / "own.arpa", 3)
    for name, open_file in (("lm.arpa", open), ("lm.arpa.gz", gzip.open)):
        assert build(text, tmp_path / name, "--estimator", "lmplz") == 0
        with open_file(tmp_path / name, "rt") as file:
            assert file.read() == (tmp_path / "own.arpa").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "own.arpa", "lm.arpa", "lm.arpa.gz"}


@needs("lmplz")
def test_what_lmplz_refuses_is_said(tmp_path):
    with pytest.raises(InputError, match="lmplz failed"):
        estimate_with_lmplz(["A <s> B"], tmp_path / "lm.arpa", 3)


@needs("build_binary")
def test_a_binary_scores_as_its_arpa_file(text, tmp_path):
    assert build(text, tmp_path / "lm.arpa") == 0
    assert build(text, tmp_path / "lm.bin") == 0
    arpa, binary = load_language_model(tmp_path / "lm.arpa"), load_language_model(tmp_path / "lm.bin")
    assert binary.words == arpa.words
    for sentence in ("THE BIRD SINGS IN MY HOUSE", "A ZEBRA"):
        assert binary.model.score(sentence) == pytest.approx(arpa.model.score(sentence), abs=1e-4)
