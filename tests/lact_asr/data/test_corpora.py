"""LibriSpeech folders and manifests: what is loaded, what is reported, what is fatal."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lact_asr.data.corpora import load_corpus
from lact_asr.errors import InputError

REAL_DATA = Path(os.environ.get("LACT_ASR_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))


def write_noise(path: Path, seconds: float = 0.5, rate_hz: int = 16_000, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(0).standard_normal((round(seconds * rate_hz), channels))
    soundfile.write(path, samples, rate_hz)


def write_chapter(subset: Path, speaker: str, chapter: str, texts: list[str]) -> Path:
    """A LibriSpeech chapter with one half-second recording a text; returns its folder."""
    folder = subset / speaker / chapter
    lines = []
    for number, text in enumerate(texts):
        name = f"{speaker}-{chapter}-{number:04d}"
        write_noise(folder / f"{name}.flac")
        lines.append(f"{name} {text}")
    (folder / f"{speaker}-{chapter}.trans.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_manifest(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def problem_names(corpus) -> dict[str, set[str]]:
    kinds: dict[str, set[str]] = {}
    for problem in corpus.problems:
        kinds.setdefault(problem.kind, set()).add(problem.name)
    return kinds


def ids(corpus) -> list[str]:
    return [cut.id for cut in corpus.cuts]


@pytest.mark.parametrize("nested", [False, True])
def test_librispeech_folder_or_its_parent(tmp_path, nested):
    root = tmp_path / "LibriSpeech" if nested else tmp_path
    write_chapter(root / "dev-clean", "84", "121", ["GO", "Don\u2019t go"])
    write_chapter(root / "dev-clean", "7", "1", ["STOP"])
    (root / "SPEAKERS.TXT").write_text(";ID |SEX| SUBSET | MINUTES | NAME\n84  | F | dev-clean | 8.0 | A Name\n")
    corpus = load_corpus(tmp_path, "dev-clean")
    assert ids(corpus) == ["7-1-0000", "84-121-0000", "84-121-0001"]
    assert corpus.texts == ["STOP", "GO", "DON'T GO"]
    assert [(cut.supervisions[0].speaker, cut.supervisions[0].gender) for cut in corpus.cuts] == [
        ("7", None),
        ("84", "f"),
        ("84", "f"),
    ]
    assert corpus.total_hours == pytest.approx(1.5 / 3600)
    assert corpus.problems == []


def test_several_subsets_and_the_960_hours(tmp_path):
    for number, subset in enumerate(["train-clean-100", "train-clean-360", "train-other-500"]):
        write_chapter(tmp_path / subset, str(number), "1", ["A"])
    assert ids(load_corpus(tmp_path, "train-960")) == ["0-1-0000", "1-1-0000", "2-1-0000"]
    assert ids(load_corpus(tmp_path, "train-other-500, train-clean-100")) == ["2-1-0000", "0-1-0000"]


def test_same_ids_in_two_subsets_stay_apart(tmp_path):
    write_chapter(tmp_path / "a", "1", "1", ["ONE"])
    write_chapter(tmp_path / "b", "1", "1", ["TWO"])
    corpus = load_corpus(tmp_path, ["a", "b"])
    assert dict(zip(ids(corpus), corpus.texts, strict=True)) == {"1-1-0000": "ONE", "b/1-1-0000": "TWO"}


def test_librispeech_problems_are_named_and_the_rest_goes_on(tmp_path):
    subset = tmp_path / "train"
    good = write_chapter(subset, "1", "1", ["FINE", "MISSING AUDIO", "NO LINE", "CUT HEADER", "IN 1984", "..."])
    (good / "1-1-0001.flac").unlink()
    (good / "1-1-0003.flac").write_bytes((good / "1-1-0003.flac").read_bytes()[:20])
    transcripts = good / "1-1.trans.txt"
    transcripts.write_text("".join(line for line in transcripts.open() if "NO LINE" not in line) + "1-1-0006\n")
    write_noise(good / "1-1-0006.flac")
    (write_chapter(subset, "2", "1", ["LOST"]) / "2-1.trans.txt").unlink()
    (write_chapter(subset, "3", "1", ["LATIN"]) / "3-1.trans.txt").write_bytes(b"3-1-0000 CAF\xc9\n")
    corpus = load_corpus(tmp_path, "train")
    assert ids(corpus) == ["1-1-0000"]
    assert problem_names(corpus) == {
        "missing audio file": {"1-1-0001"},
        "missing transcript line": {"1-1-0002"},
        "unreadable audio file": {"1-1-0003"},
        "transcript with digits, symbols or foreign letters": {"1-1-0004"},
        "empty transcript": {"1-1-0005", "1-1-0006"},
        "missing transcript file": {"2-1.trans.txt"},
        "unreadable transcript file": {"3-1.trans.txt"},
    }
    report = corpus.report()
    assert report.startswith(f"train ({tmp_path}): 1 utterances, 0.00 h, 8 left out\n")
    assert "  2 × empty transcript: 1-1-0005, 1-1-0006" in report.splitlines()


def test_report_names_only_the_first_few(tmp_path):
    write_chapter(tmp_path / "a", "1", "1", ["FINE", *["?"] * 5])
    assert load_corpus(tmp_path, "a").report(2).endswith("5 × empty transcript: 1-1-0001, 1-1-0002 and 3 more")


def test_manifest_with_offsets_fields_rates_and_channels(tmp_path):
    write_noise(tmp_path / "audio/x.flac", seconds=2.0)
    write_noise(tmp_path / "audio/y.wav", seconds=1.0, rate_hz=44_100, channels=2)
    rows = [
        {"audio_filepath": "audio/x.flac", "text": "whole", "duration": 2.04, "speaker": 12, "gender": "f", "age": 9},
        {"audio_filepath": "audio/x.flac", "text": "part", "offset": 0.5, "duration": 1.0},
        {"audio_filepath": "audio/y.wav", "text": "stereo", "id": "my-id"},
        {"audio_filepath": str(tmp_path / "audio/x.flac"), "text": "beginning", "duration": 1.25, "id": "b"},
    ]
    write_manifest(tmp_path / "train.jsonl", rows)
    corpus = load_corpus(tmp_path, "train", "manifest")
    assert ids(corpus) == ["audio/x", "audio/x@0.5", "my-id", "b"]
    assert [(cut.start, cut.duration) for cut in corpus.cuts] == [(0.0, 2.0), (0.5, 1.0), (0.0, 1.0), (0.0, 1.25)]
    first = corpus.cuts[0].supervisions[0]
    assert (first.text, first.speaker, first.gender, first.custom) == ("WHOLE", "12", "f", {"age": 9})
    assert corpus.cuts["my-id"].recording.sampling_rate == 44_100
    assert ids(load_corpus(tmp_path / "train.jsonl", "", "manifest")) == ids(corpus)
    assert ids(load_corpus(tmp_path, str(tmp_path / "train.jsonl"), "manifest")) == ids(corpus)


def test_manifest_problems_are_named_and_the_rest_goes_on(tmp_path):
    write_noise(tmp_path / "x.wav", seconds=1.0)
    write_noise(tmp_path / "short.wav", seconds=0.02)
    (tmp_path / "text.wav").write_text("not audio " * 20)
    rows = [
        {"audio_filepath": "x.wav", "text": "fine"},
        {"audio_filepath": "x.wav"},
        {"audio_filepath": "x.wav", "text": "a", "duration": -1},
        {"audio_filepath": "x.wav", "text": "a", "offset": "1 s"},
        {"audio_filepath": "x.wav", "text": "a", "id": "long", "duration": 3.0},
        {"audio_filepath": "none.wav", "text": "a"},
        {"audio_filepath": "text.wav", "text": "a"},
        {"audio_filepath": "short.wav", "text": "a"},
    ]
    write_manifest(tmp_path / "m.jsonl", rows)
    corpus = load_corpus(tmp_path, "m", "manifest")
    assert ids(corpus) == ["x"]
    assert problem_names(corpus) == {
        "missing transcript": {"m.jsonl:2"},
        "impossible duration": {"m.jsonl:3"},
        "impossible offset": {"m.jsonl:4"},
        "recording shorter than the manifest says": {"long"},
        "missing audio file": {"none"},
        "unreadable audio file": {"text"},
        "shorter than one frame": {"short"},
    }


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"audio_filepath": "x.wav", "text": "a"}\n{broken\n', r"m\.jsonl:2 is not JSON"),
        ('{"audio_filepath": "x.wav", "text": "a"}\n["x.wav"]\n', r"m\.jsonl:2 is not a manifest line"),
        ('{"text": "a"}\n', r"m\.jsonl:1 is not a manifest line"),
        ("", "subset 'm' has no usable utterances"),
        (
            '{"audio_filepath": "none.wav", "text": "a"}\n',
            r"no usable utterances.*first of 1 problems: no such audio file",
        ),
    ],
)
def test_fatal_manifests(tmp_path, content, sentence):
    write_noise(tmp_path / "x.wav")
    (tmp_path / "m.jsonl").write_text(content)
    with pytest.raises(InputError, match=sentence):
        load_corpus(tmp_path, "m", "manifest")


def test_folders_that_are_something_else_are_recognised(tmp_path, monkeypatch):
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "dev.jsonl").write_text("")
    with pytest.raises(InputError, match=r"but a manifest dev\.jsonl: give --dataset_type manifest"):
        load_corpus(tmp_path / "manifests", "dev")
    chapter = tmp_path / "corpus" / "dev-clean" / "7" / "1"
    chapter.mkdir(parents=True)
    (chapter / "7-1.trans.txt").write_text("7-1-0000 THE CAT\n")
    monkeypatch.chdir(tmp_path / "corpus" / "dev-clean")
    for folder in (Path("."), tmp_path / "corpus" / "dev-clean"):
        with pytest.raises(InputError) as refused:
            load_corpus(folder, "dev")
        assert "looks like a subset itself: give its parent as --data_dir" in str(refused.value)
        assert f"{tmp_path / 'corpus'}, and dev-clean as the subset" in str(refused.value)


@pytest.mark.parametrize(
    ("subsets", "dataset_type", "sentence"),
    [
        ("dev-cleen", "librispeech", "no subset 'dev-cleen' in .*: there is dev-clean, void"),
        ("dev", "manifest", "no manifest dev.jsonl in .*: there is none"),
        ("", "librispeech", "no subset was named"),
        ("dev-clean,dev-clean", "librispeech", "named 2 times"),
        ("void", "librispeech", "subset 'void' has no usable utterances"),
        ("dev-clean", "kaldi", "unknown dataset type 'kaldi'"),
    ],
)
def test_fatal_subsets(tmp_path, subsets, dataset_type, sentence):
    write_chapter(tmp_path / "dev-clean", "1", "1", ["A"])
    (tmp_path / "void").mkdir()
    with pytest.raises(InputError, match=sentence):
        load_corpus(tmp_path, subsets, dataset_type)


def test_missing_data_folder(tmp_path):
    with pytest.raises(InputError, match="no such data folder"):
        load_corpus(tmp_path / "none", "a")


@pytest.mark.real_data
def test_real_corpora_load_whole():
    if not REAL_DATA.is_dir():
        pytest.skip(f"no recordings in {REAL_DATA} (set LACT_ASR_DATA)")
    excerpt = load_corpus(REAL_DATA / "librispeech_excerpt", "dev-clean")
    assert ids(excerpt) == ["2412-153948-0000"]
    assert excerpt.problems == []
    dev = load_corpus(REAL_DATA / "speechocean762", "dev", "manifest")
    assert (len(dev.cuts), dev.problems) == (1260, [])
    assert dev.total_hours == pytest.approx(1.36, abs=0.01)
    assert len({cut.supervisions[0].speaker for cut in dev.cuts}) == 63
