"""Results files that survive being killed."""

import json
import os
from dataclasses import replace

import pytest

from lact_asr.errors import InputError
from lact_asr.inference.alignment.word_times import Word
from lact_asr.inference.results.results_file import ResultsWriter, read_results
from lact_asr.inference.results.utterance_result import UtteranceResult
from lact_asr.metrics import ErrorCounts

GOOD = UtteranceResult.scored("a", "THE CAT SAT", "THE CAT", "A CAT", audio_seconds=2.0, compute_seconds=0.5)
OTHER = UtteranceResult.scored("b", "HELLO", "HELLO", "HELLO", audio_seconds=2.0, compute_seconds=1.5)
FAILED = UtteranceResult("c", "LOST", message="audio file c.wav is empty")


def write(path, results, **options):
    with ResultsWriter(path, **options) as writer:
        for result in results:
            writer.write(result)


def test_scored_counts_words_and_characters_of_both_passes():
    assert GOOD.word_errors == ErrorCounts(deletions=1, hits=2)
    assert GOOD.word_errors_without_ttt == ErrorCounts(substitutions=1, deletions=1, hits=1)
    assert GOOD.character_errors == ErrorCounts(deletions=4, hits=7)
    without_reference = UtteranceResult.scored("x", None, "TEXT", audio_seconds=1.0, compute_seconds=1.0)
    assert without_reference.word_errors is None
    assert without_reference.hypothesis_without_ttt is None


def test_results_come_back_as_written(tmp_path):
    path = tmp_path / "deep" / "results.jsonl"
    accented = UtteranceResult.scored("é", None, "ÜBER", audio_seconds=1.0, compute_seconds=1.0)
    write(path, [GOOD, FAILED, accented], settings={"beam_size": 50})
    assert read_results(path) == [GOOD, FAILED, accented]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"settings": {"beam_size": 50}}
    assert lines[1]["word_errors"] == {"substitutions": 0, "deletions": 1, "insertions": 0, "hits": 2}


def test_files_from_before_refusals_were_written_are_read(tmp_path):
    path = tmp_path / "results.jsonl"
    write(path, [GOOD])
    path.write_text(path.read_text().replace(', "ttt_refusal": null', ""))
    assert "ttt_refusal" not in path.read_text()
    assert read_results(path) == [GOOD]


def test_words_are_written_where_wanted_and_else_leave_the_file_as_it_was(tmp_path):
    timed = replace(GOOD, words=(Word("THE", 0.05, 0.2, 0.8), Word("CAT", 0.3, 0.55)))
    write(tmp_path / "timed.jsonl", [timed, FAILED], word_times=True)
    write(tmp_path / "plain.jsonl", [timed, FAILED])
    write(tmp_path / "before.jsonl", [GOOD, FAILED])
    assert read_results(tmp_path / "timed.jsonl") == [timed, FAILED]
    assert json.loads((tmp_path / "timed.jsonl").read_text().splitlines()[1])["words"][1] == {
        "text": "CAT",
        "start_seconds": 0.3,
        "end_seconds": 0.55,
        "confidence": None,
    }
    assert (tmp_path / "plain.jsonl").read_bytes() == (tmp_path / "before.jsonl").read_bytes()
    assert "words" not in json.loads((tmp_path / "plain.jsonl").read_text().splitlines()[1])


def test_results_without_words_are_computed_again_where_a_resumed_run_wants_words(tmp_path):
    path = tmp_path / "results.jsonl"
    write(path, [GOOD])
    with ResultsWriter(path, resume=True, word_times=True) as writer:
        assert writer.done == {}
        writer.write(replace(GOOD, words=(Word("THE", 0.05, 0.2), Word("CAT", 0.3, 0.55))))
    with ResultsWriter(path, resume=True, word_times=True) as writer:
        assert writer.done["a"].words[1].text == "CAT"


def test_each_result_is_in_the_file_at_once(tmp_path):
    path = tmp_path / "results.jsonl"
    with ResultsWriter(path) as writer:
        writer.write(GOOD)
        assert read_results(path) == [GOOD]


def test_torn_last_line_is_passed_over_and_cut_off_on_resuming(tmp_path):
    path = tmp_path / "results.jsonl"
    write(path, [GOOD, OTHER])
    path.write_bytes(path.read_bytes()[:-30])
    assert read_results(path) == [GOOD]
    with ResultsWriter(path, resume=True) as writer:
        assert set(writer.done) == {"a"}
        writer.write(OTHER)
    assert read_results(path) == [GOOD, OTHER]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_failures_are_tried_again_and_the_last_line_counts(tmp_path):
    path = tmp_path / "results.jsonl"
    write(path, [GOOD, FAILED])
    mended = UtteranceResult.scored("c", "LOST", "LOST", audio_seconds=1.0, compute_seconds=1.0)
    with ResultsWriter(path, resume=True) as writer:
        assert set(writer.done) == {"a"}
        writer.write(mended)
    assert read_results(path) == [GOOD, mended]


def test_without_resume_the_file_is_replaced(tmp_path):
    path = tmp_path / "results.jsonl"
    write(path, [GOOD, OTHER])
    write(path, [FAILED])
    assert read_results(path) == [FAILED]


def test_resuming_with_other_settings_is_refused_and_changes_nothing(tmp_path):
    path = tmp_path / "results.jsonl"
    write(path, [GOOD], settings={"beam_size": 50, "lm": None})
    before = path.read_bytes()
    with (
        pytest.raises(InputError, match="beam_size 50, not 10"),
        ResultsWriter(path, {"beam_size": 10, "lm": None}, resume=True),
    ):
        pass
    assert path.read_bytes() == before
    with ResultsWriter(path, {"beam_size": 50, "lm": None}, resume=True) as writer:
        assert list(writer.done) == ["a"]


def test_resuming_a_run_killed_before_its_first_line(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"sett')
    write(path, [GOOD], settings={"beam_size": 5}, resume=True)
    assert read_results(path) == [GOOD]
    write(tmp_path / "new.jsonl", [OTHER], resume=True)
    assert read_results(tmp_path / "new.jsonl") == [OTHER]


def test_a_run_without_results_leaves_no_file(tmp_path):
    def fail():
        with ResultsWriter(tmp_path / "results.jsonl"):
            raise InputError("a bad flag")

    with pytest.raises(InputError, match="a bad flag"):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["not json", "[1, 2]", '{"id": "a", "colour": "red"}', '{"reference": "no id"}'])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "results.jsonl"
    write(path, [GOOD])
    path.write_text(path.read_text() + line + "\n" + json.dumps({"id": "z"}) + "\n")
    with pytest.raises(InputError, match=r"results\.jsonl, line 3"):
        read_results(path)


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_results(tmp_path / "missing.jsonl")
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="cannot write results file"),
        ResultsWriter(tmp_path / "file" / "results.jsonl"),
    ):
        pass
    with pytest.raises(InputError, match="cannot write results file"), ResultsWriter(tmp_path):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"), ResultsWriter(tmp_path / "results.jsonl"):
        pass


@pytest.mark.parametrize(
    "content",
    [b"RIFF$\x00\x00\x00WAVEfmt ", b'{\n  "hidden_size": 16\n}\n', b'{"hidden_size": 16}', b"THE CAT SAT\n", b"\n"],
)
def test_a_file_that_holds_no_results_is_not_replaced(tmp_path, content):
    path = tmp_path / "mine"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is there already and is no results file"), ResultsWriter(path):
        pass
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b'{"settings": {"beam', b'{"settings": {}}', b'{"settings": {}}\n'])
def test_what_a_killed_run_left_is_replaced(tmp_path, content):
    path = tmp_path / "results.jsonl"
    path.write_bytes(content)
    write(path, [GOOD])
    assert read_results(path) == [GOOD]


def test_a_try_of_a_few_utterances_does_not_replace_a_whole_run(tmp_path):
    path, options = tmp_path / "results.jsonl", {"settings": {"beam_size": 1}, "overwrite": False}
    write(path, [GOOD, FAILED, OTHER], **options)
    with pytest.raises(InputError, match="holds 3 results, and this run is of 2: give --output another file"):
        write(path, [GOOD], expected=2, **options)
    write(path, [GOOD, FAILED, OTHER, replace(GOOD, id="c")], expected=3, **options)  # one is tried again
    write(path, [OTHER], expected=3, **options)
    assert read_results(path) == [OTHER]
    write(path, [GOOD, OTHER], **options)
    write(path, [GOOD], settings={"beam_size": 1}, expected=1, overwrite=True)
    assert read_results(path) == [GOOD]
