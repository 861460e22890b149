"""The corpus check: every kind of trouble is found and named once, sound corpora pass, and the report is whole."""

import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
import soundfile

from lact_asr.data import corpus_checks
from lact_asr.data.check_corpus import main
from lact_asr.data.corpora import list_corpus, load_corpus
from lact_asr.data.corpus_checks import check_subsets
from lact_asr.errors import InputError
from lact_asr.processing_hybrid_asr import HybridASRProcessor
from lact_asr.text import build_vocabulary


@pytest.fixture
def corpus(tmp_path):
    """A subset "train" of noise, half a second an utterance; ``corpus(text, …)`` writes it and returns its chapter."""

    def write(*texts: str, subset: str = "train"):
        folder = tmp_path / "corpus" / subset / "1" / "1"
        folder.mkdir(parents=True)
        for number in range(len(texts)):
            samples = 0.1 * np.random.default_rng(number).standard_normal(8_000 + 800 * number)
            soundfile.write(folder / f"1-1-{number:04d}.flac", samples, 16_000)
        (folder / "1-1.trans.txt").write_text("".join(f"1-1-{n:04d} {text}\n" for n, text in enumerate(texts)))
        return folder

    return write


@pytest.fixture
def check(tmp_path):
    """Run the check; returns exit code and report."""

    def run(*flags: object, subset: str = "train"):
        common = ["--data_dir", tmp_path / "corpus", "--subset", subset, "--output_dir", tmp_path / "report"]
        exit_code = main([str(flag) for flag in (*common, "--num_workers", 2, *flags)])
        path = tmp_path / "report" / "report.json"
        return exit_code, json.loads(path.read_text()) if path.exists() else None

    return run


def found(report: dict, severity: str) -> dict[str, list[str]]:
    """Names by kind."""
    kinds: dict[str, list[str]] = {}
    for problem in report["problems"]:
        assert problem["name"] in problem["sentence"]
        assert "\n" not in problem["sentence"]
        if problem["severity"] == severity:
            kinds.setdefault(problem["kind"], []).append(problem["name"])
    return kinds


def test_a_sound_corpus_passes_with_its_durations_and_characters(corpus, check, capsys, tmp_path):
    corpus("HELLO", "don't", "GO ON", subset="a")
    corpus("Yes.", subset="b")
    exit_code, report = check(subset="a,b")
    assert exit_code == 1  # the two subsets use one id
    assert found(report, "error") == {"id used twice": ["1-1-0000", "1-1-0000"]}
    (tmp_path / "corpus/b/1/1/1-1-0000.flac").rename(tmp_path / "corpus/b/1/1/1-1-0009.flac")
    (tmp_path / "corpus/b/1/1/1-1.trans.txt").write_text("1-1-0009 Yes.\n")
    exit_code, report = check(subset="a,b")
    assert exit_code == 0
    assert report["problems"] == []
    assert report["subsets"]["a"] | {"1 %": 0, "99 %": 0} == {
        "listed": 3, "readable": 3, "hours": pytest.approx(1.65 / 3600), "mean": pytest.approx(0.55), "min": 0.5, "max": 0.6,
        "1 %": 0, "10 %": pytest.approx(0.51), "25 %": pytest.approx(0.525), "50 %": pytest.approx(0.55),
        "75 %": pytest.approx(0.575), "90 %": pytest.approx(0.59), "99 %": 0,
    }  # fmt: skip
    assert report["characters"]["O"] == {"count": 3, "becomes": "O"}
    assert report["characters"]["t"] == {"count": 1, "becomes": "T"}
    assert report["characters"]["."] == {"count": 1, "becomes": ""}
    assert "| all | 4 | 0.00 | 0.5 |" in capsys.readouterr().out
    assert (tmp_path / "report" / "durations.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["durations.png", "report.json"]


def test_every_kind_of_error_is_found_and_named(corpus, check, capsys):
    texts = ["MISSING", "GARBAGE", "CUT OFF", "SILENT", "IN 1984", "…", "TOO LONG " * 8, "FINE", "NO LINE"]
    folder = corpus(*texts)
    paths = [folder / f"1-1-{number:04d}.flac" for number in range(len(texts))]
    paths[0].unlink()
    paths[1].write_bytes(b"not audio at all")
    paths[2].write_bytes(paths[2].read_bytes()[:9_000])
    soundfile.write(paths[3], np.zeros(8_000), 16_000)
    transcripts = folder / "1-1.trans.txt"
    transcripts.write_text("".join(line for line in transcripts.open() if "NO LINE" not in line))
    exit_code, report = check()
    assert exit_code == 1
    assert found(report, "error") == {
        "missing audio file": ["1-1-0000"],
        "unreadable audio file": ["1-1-0001", "1-1-0002"],
        "silent recording": ["1-1-0003"],
        "transcript with digits, symbols or foreign letters": ["1-1-0004"],
        "empty transcript": ["1-1-0005"],
        "transcript longer than its frames": ["1-1-0006"],
        "missing transcript line": ["1-1-0008"],
    }
    assert report["subsets"]["train"]["readable"] == 2
    assert report["characters"]["9"]["becomes"] == "cannot be spelt"
    out = capsys.readouterr().out
    assert "error: 2 × unreadable audio file\n" in out
    assert out.count("truncated") == 1


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="workers must inherit what the test replaces")
def test_recordings_that_kill_their_worker_are_found_and_the_others_are_read(corpus, check, monkeypatch):
    corpus(*["FINE"] * 6)
    read_cut = corpus_checks.read_cut

    def read_or_die(cut):
        if cut.id in ("1-1-0001", "1-1-0004"):
            os.kill(os.getpid(), signal.SIGKILL)
        return read_cut(cut)

    monkeypatch.setattr(corpus_checks, "read_cut", read_or_die)
    monkeypatch.setattr(corpus_checks, "_CUTS_PER_TASK", 2)
    exit_code, report = check()
    assert exit_code == 1
    assert found(report, "error") == {"unreadable audio file": ["1-1-0001", "1-1-0004"]}
    assert report["subsets"]["train"]["readable"] == 4


def test_what_is_odd_but_usable_is_a_warning(corpus, check, capsys):
    folder = corpus("HELLO", "HELLO", "A", "QUICKLY SPOKEN IT IS")
    soundfile.write(folder / "1-1-0000.flac", 0.1 * np.random.default_rng(0).standard_normal(22_050), 44_100)
    soundfile.write(folder / "1-1-0001.flac", 0.1 * np.random.default_rng(0).standard_normal((8_000, 2)), 16_000)
    exit_code, report = check("--max_shown", 1)
    assert exit_code == 0
    assert found(report, "error") == {}
    assert found(report, "warning") == {
        "another sampling rate than 16 kHz": ["1-1-0000"],
        "several channels": ["1-1-0001"],
        "unusual speaking rate": ["1-1-0002", "1-1-0003"],
    }
    assert "1-1-0002 has 1.7 characters a second, where 2 to 30 are usual\n  … and 1 more\n" in capsys.readouterr().out


def test_a_lower_frame_rate_holds_fewer_characters(corpus, check, tmp_path):
    corpus("THIRTY EIGHT CHARACTERS ARE TOO MANY")  # 36 labels in 24 frames of 20 ms, in 39 of 12.5 ms
    assert found(check()[1], "error") == {}
    (tmp_path / "model.json").write_text('{"encoder_target_ds_factor": 8}')
    exit_code, report = check("--config_path", tmp_path / "model.json")
    assert exit_code == 1
    assert found(report, "error") == {"transcript longer than its frames": ["1-1-0000"]}


def test_characters_that_a_model_cannot_spell_are_errors(corpus, tmp_path):
    corpus("ZOO", "GO")
    vocabulary = {token: index for index, token in enumerate(token for token in build_vocabulary() if token != "Z")}
    tokenizer = HybridASRProcessor.from_vocabulary(vocabulary).tokenizer
    listings = list_corpus(tmp_path / "corpus", "train", "librispeech")
    (checked,) = check_subsets(listings, tokenizer, samples_per_frame=200, num_workers=1)
    assert [(problem.name, problem.kind) for problem in checked.problems] == [
        ("1-1-0000", "characters outside of the vocabulary")
    ]


def test_a_subset_without_one_usable_utterance_is_reported_too(corpus, check):
    corpus("1", "2")
    exit_code, report = check()
    assert exit_code == 1
    assert report["subsets"]["train"]["readable"] == 0
    assert len(report["problems"]) == 2


def test_bad_input_is_one_sentence(check, corpus, capsys, tmp_path):
    corpus("A")
    assert check(subset="trane")[0] == 2
    assert capsys.readouterr().err == f"error: no subset 'trane' in {tmp_path / 'corpus'}: there is train\n"
    assert check("--config_path", tmp_path / "none.json")[0] == 2
    assert "none.json" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert check("--output_dir", tmp_path / "file" / "report")[0] == 2
    assert "report cannot be used" in capsys.readouterr().err


def test_broken_manifest_lines_are_listed_with_all_else(tmp_path, check):
    folder = tmp_path / "corpus"
    folder.mkdir()
    soundfile.write(folder / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(32_000), 16_000)
    good = json.dumps({"audio_filepath": "a.wav", "text": "ONE TWO THREE FOUR FIVE SIX"})
    (folder / "m.jsonl").write_text(f'{good}\n{{"audio_filepath": "b.wav", "te\n["a.wav"]\n')
    (folder / "n.jsonl").write_text(f"{good}\n")
    exit_code, report = check("--dataset_type", "manifest", subset="m,n")
    assert exit_code == 1
    assert found(report, "error")["line that is not a manifest entry"] == ["m.jsonl:2", "m.jsonl:3"]
    with pytest.raises(InputError, match=r"m\.jsonl:2 is not JSON"):
        load_corpus(folder, "m", "manifest")
