"""Each format by hand, and where its files go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lact_asr.errors import InputError
from lact_asr.inference.alignment.word_times import TimedTranscript, Word
from lact_asr.inference.transcript_formats.formats import (
    FORMATS,
    check_destination,
    choose_format,
    timed_transcripts,
    write_transcripts,
)
from lact_asr.inference.transcript_formats.subtitles import clock

CAT = TimedTranscript(
    "talks/a cat.wav",
    "THE CAT & R<B",
    (Word("THE", 0.25, 0.5, 0.875), Word("CAT", 0.5, 1.0), Word("&", 3.0, 3.125), Word("R<B", 3.125, 3.5)),
    4.0,
)
SILENCE = TimedTranscript("b.flac", "", (), 1.5)


def written(format_name: str, *transcripts: TimedTranscript, folder: Path) -> str:
    (path,) = write_transcripts(transcripts, format_name, folder / "out")
    return path.read_text()


def test_text(tmp_path):
    assert written("text", CAT, SILENCE, folder=tmp_path) == "talks/a cat.wav\tTHE CAT & R<B\nb.flac\t\n"


def test_json_lines(tmp_path):
    first, second = map(json.loads, written("jsonl", CAT, SILENCE, folder=tmp_path).splitlines())
    assert first["text"] == CAT.text
    assert first["words"][0] == {"text": "THE", "start_seconds": 0.25, "end_seconds": 0.5, "confidence": 0.875}
    assert (second["id"], second["words"], second["audio_seconds"]) == ("b.flac", [], 1.5)


def test_srt(tmp_path):
    assert written("srt", CAT, folder=tmp_path) == (
        "1\n00:00:00,250 --> 00:00:01,250\nTHE CAT\n\n2\n00:00:03,000 --> 00:00:04,000\n& R<B\n"
    )
    assert written("srt", SILENCE, folder=tmp_path) == ""


def test_vtt(tmp_path):
    assert written("vtt", CAT, folder=tmp_path) == (
        "WEBVTT\n\n00:00:00.250 --> 00:00:01.250\nTHE CAT\n\n00:00:03.000 --> 00:00:04.000\n&amp; R&lt;B\n"
    )
    assert written("vtt", SILENCE, folder=tmp_path) == "WEBVTT\n"


def test_ctm(tmp_path):
    assert written("ctm", CAT, SILENCE, folder=tmp_path).splitlines() == [
        "a_cat 1 0.250 0.250 THE 0.875",
        "a_cat 1 0.500 0.500 CAT",
        "a_cat 1 3.000 0.125 &",
        "a_cat 1 3.125 0.375 R<B",
    ]


def test_a_ctm_file_is_sorted_and_keeps_the_ids_of_utterances(tmp_path):
    """sclite stops at a recording that comes twice, and finds one by its name in the reference."""
    late, early = Word("LATE", 9.0, 9.5), Word("EARLY", 2.5, 3.0)
    spoken = [TimedTranscript(id, "", words, 10.0) for id, words in (
        ("talks/b.wav", (late,)), ("7-1-0.9", (early, late)), ("talks/B.FLAC", (early,)), ("x/c.mp3", (late,)), ("y/c.mp3", (early,)),
    )]  # fmt: skip
    assert [line.split()[0::4] for line in written("ctm", *spoken, folder=tmp_path).splitlines()] == [
        ["7-1-0.9", "EARLY"],
        ["7-1-0.9", "LATE"],
        ["B", "EARLY"],
        ["b", "LATE"],
        ["x/c.mp3", "LATE"],
        ["y/c.mp3", "EARLY"],
    ]


def test_textgrid(tmp_path):
    spoken = TimedTranscript(
        "a", 'SAY "A"', (Word("SAY", 0.25, 0.5), Word('"A"', 0.5, 1.0)), 1.5, (Word("S", 0.0, 1.5),)
    )
    text = written("textgrid", spoken, folder=tmp_path)
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == 'File type = "ooTextFile"'
    assert lines.count('class = "IntervalTier"') == 2
    assert [line for line in lines if "size" in line] == ["size = 2", "intervals: size = 4", "intervals: size = 1"]
    words = lines[lines.index('name = "words"') : lines.index('name = "characters"')]
    assert [line for line in words if line.startswith("text")] == [
        'text = ""',
        'text = "SAY"',
        'text = """A"""',
        'text = ""',
    ]
    assert [line for line in words if line.startswith("xmin")][1:] == [f"xmin = {x:.6f}" for x in (0, 0.25, 0.5, 1)]
    assert "characters" not in written("textgrid", CAT, folder=tmp_path)


def test_clock():
    assert clock(3723.5) == "01:02:03.500"
    assert clock(59.9996, ",") == "00:01:00,000"
    assert clock(360_000) == "100:00:00.000"


def test_formats_are_known_by_suffix():
    for name, format in FORMATS.items():
        assert choose_format(None, Path(f"a{format.suffix}")) == name
    assert choose_format("ctm", Path("a.srt")) == "ctm"
    assert choose_format(None, Path("a.SRT")) == "srt"
    assert choose_format(None, Path("results")) is None
    assert choose_format(None, None) is None


def test_files_of_one_recording_each(tmp_path):
    paths = write_transcripts([CAT, SILENCE], "vtt", tmp_path / "new" / "subtitles")
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "new/subtitles/a cat.vtt",
        "new/subtitles/b.vtt",
    ]
    (path,) = write_transcripts([CAT], "vtt", tmp_path / "new")
    assert path == tmp_path / "new" / "a cat.vtt"
    (path,) = write_transcripts([CAT], "vtt", tmp_path / "one.vtt")
    assert path == tmp_path / "one.vtt"
    (path,) = write_transcripts([CAT], "vtt", tmp_path / "left of two")  # the other one failed
    assert path == tmp_path / "left of two" / "a cat.vtt"
    assert not list(tmp_path.rglob("*.tmp"))


def test_recordings_of_one_name_in_two_folders(tmp_path):
    twins = [TimedTranscript(f"{folder}/a.wav", "", (), 1.0) for folder in ("x", "y")]
    assert [path.name for path in write_transcripts(twins, "srt", tmp_path)] == ["x_a.wav.srt", "y_a.wav.srt"]
    dotted = [TimedTranscript(f"speed-0.9/{n}.5", "", (), 1.0) for n in (1, 2)]
    assert [path.name for path in write_transcripts(dotted, "srt", tmp_path)] == [
        "speed-0.9_1.5.srt",
        "speed-0.9_2.5.srt",
    ]


def test_destinations_that_cannot_be_written(tmp_path):
    two = ["a.wav", "b.wav"]
    (tmp_path / "file").write_text("")
    for output in (None, Path("a.srt")):
        with pytest.raises(InputError, match=r"Each \.srt file .* and there are 2: give --output a folder"):
            check_destination("srt", output, two)
    with pytest.raises(InputError, match="is a file"):
        check_destination("srt", tmp_path / "file", ["a.wav"])
    with pytest.raises(InputError, match="is a folder"):
        check_destination("ctm", tmp_path, two)
    with pytest.raises(InputError, match=r"Two recordings would be written to .*a_b_c"):
        check_destination("srt", tmp_path, ["a/b/c.wav", "a_b/c.wav"])
    with pytest.raises(InputError, match="cannot be written"):
        write_transcripts([CAT], "ctm", tmp_path / "file" / "a.ctm")
    check_destination("srt", tmp_path / "new", two)
    check_destination("ctm", None, two)
    check_destination("srt", None, ["a.wav"])


def test_results_without_word_times_are_refused_and_failures_left_out():
    from lact_asr.inference.results.utterance_result import UtteranceResult

    timed = UtteranceResult("a", None, "THE", words=(Word("THE", 0.0, 0.5),), audio_seconds=1.0)
    failed = UtteranceResult("b", None, message="a.wav is empty")
    assert [transcript.id for transcript in timed_transcripts([timed, failed], "ctm")] == ["a"]
    with pytest.raises(InputError, match="--word_times"):
        timed_transcripts([UtteranceResult("c", None, "THE")], "ctm")
