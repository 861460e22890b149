"""Corpus runs with bad files."""

import numpy as np
import pytest

from lact_asr.audio import SAMPLE_RATE_HZ
from lact_asr.errors import InputError
from lact_asr.inference.alignment.word_times import Word
from lact_asr.inference.evaluation import Recognition, Utterance, evaluate
from lact_asr.inference.results.results_file import ResultsWriter, read_results


def utterances_and_recogniser():
    """Three utterances, the second of them unreadable, and a recogniser that tells durations."""

    def unreadable():
        raise InputError("audio file two.wav is truncated")

    calls = []

    def answer(samples):
        calls.append(len(samples))
        if len(samples) < 400:
            return InputError("shorter than one frame")
        text = "LONG" if len(samples) > SAMPLE_RATE_HZ else "SHORT"
        return Recognition(text, "SHORT", words=(Word(text, 0.1, 0.4, 0.9),))

    def recognise(recordings, speakers):
        return [answer(samples) for samples in recordings]

    return (
        [
            Utterance("one", "LONG", lambda: np.zeros(2 * SAMPLE_RATE_HZ, np.float32)),
            Utterance("two", "LOST", unreadable),
            Utterance("three", "SHORT", lambda: np.zeros(SAMPLE_RATE_HZ // 2, np.float32)),
            Utterance("four", "TINY", lambda: np.zeros(10, np.float32)),
        ],
        recognise,
        calls,
    )


@pytest.mark.parametrize("batch_size", [1, 2, 3, 9])
def test_one_bad_file_is_recorded_and_the_rest_go_on(tmp_path, capsys, batch_size):
    utterances, recognise, calls = utterances_and_recogniser()
    path = tmp_path / "results.jsonl"
    with ResultsWriter(path, word_times=True) as writer:
        results = evaluate(utterances, recognise, writer, batch_size)
    assert [result.id for result in results] == ["one", "two", "three", "four"]
    assert [result.message for result in results] == [
        None,
        "audio file two.wav is truncated",
        None,
        "shorter than one frame",
    ]
    assert results[0].audio_seconds == 2.0
    assert results[0].compute_seconds > 0
    assert results[0].words == (Word("LONG", 0.1, 0.4, 0.9),)
    assert sorted(read_results(path), key=lambda result: result.id) == sorted(results, key=lambda result: result.id)
    assert "two: audio file two.wav is truncated" in capsys.readouterr().err

    calls.clear()
    with ResultsWriter(path, resume=True, word_times=True) as writer:
        assert evaluate(utterances, recognise, writer, batch_size)[0] == results[0]
    assert calls == [10]  # only the failures were tried again, and the second fails before it is recognised


def test_batches_are_of_similar_durations_where_the_order_does_not_matter():
    seconds = [1, 3, 2, 3, 1]
    utterances = [
        Utterance(str(index), None, lambda value=value: np.full(value, value, np.float32), seconds=value)
        for index, value in enumerate(seconds)
    ]
    batches = []

    def recognise(recordings, speakers):
        batches.append([len(samples) for samples in recordings])
        return [Recognition(str(len(samples)), None) for samples in recordings]

    for in_order, expected in ((True, [[1, 3], [2, 3], [1]]), (False, [[3, 3], [2, 1], [1]])):
        batches.clear()
        results = evaluate(utterances, recognise, batch_size=2, in_order=in_order)
        assert batches == expected
        assert [result.hypothesis for result in results] == ["1", "3", "2", "3", "1"]


def test_other_exceptions_are_not_swallowed(tmp_path):
    def broken(recordings, speakers):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate(utterances_and_recogniser()[0], broken)
