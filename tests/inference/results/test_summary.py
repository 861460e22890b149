"""Sums over results and their table."""

import pytest

from lact_asr.inference.results.summary import format_table, summarise
from lact_asr.inference.results.utterance_result import UtteranceResult
from lact_asr.metrics import ErrorCounts

GOOD = UtteranceResult.scored("a", "THE CAT SAT", "THE CAT", "A CAT", audio_seconds=2.0, compute_seconds=0.5)
OTHER = UtteranceResult.scored("b", "HELLO", "HELLO", "HELLO", audio_seconds=2.0, compute_seconds=1.5)
FAILED = UtteranceResult("c", "LOST", message="audio file c.wav is empty")


def test_summary_by_hand():
    summary = summarise([GOOD, OTHER, FAILED])
    assert (summary.utterances, summary.failed) == (3, 1)
    assert summary.words == ErrorCounts(deletions=1, hits=3)
    assert summary.words_without_ttt == ErrorCounts(substitutions=1, deletions=1, hits=2)
    assert summary.words.rate == 0.25
    assert summary.characters.rate == pytest.approx(4 / 16)
    assert summary.real_time_factor == pytest.approx(2.0 / 4.0)
    empty = summarise([FAILED])
    assert (empty.words, empty.real_time_factor, empty.failed) == (None, None, 1)


def test_table_is_markdown_with_only_filled_columns():
    plain = UtteranceResult.scored("p", "A B", "A C", audio_seconds=10.0, compute_seconds=1.0)
    lines = format_table({"clean, greedy": summarise([plain]), "10 dB": summarise([plain, plain])}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["", "utterances", "words", "WER %", "CER %", "real-time factor"]
    assert cells[2] == ["clean, greedy", "1", "2", "50.00", "33.33", "0.100"]
    assert cells[3][:3] == ["10 dB", "2", "4"]
    assert len({len(line) for line in lines}) == 1
    assert set(lines[1]) == set("|-:")
    with_all = format_table({"x": summarise([GOOD, FAILED])})
    assert "failed" in with_all
    assert "WER % without TTT" in with_all
