"""Rooms: the convolution by hand, time and level kept."""

import numpy as np
import pytest
import torch

from lact_asr.data.reverberation import reverberate


@pytest.fixture
def speech() -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(8_000)).astype(np.float32)


def test_an_echo_is_the_speech_again_later_and_softer_at_the_level_of_before(speech):
    response = np.zeros(900, np.float32)
    response[[0, 800]] = 0.02, 0.01  # 50 ms later
    expected = speech.copy()
    expected[800:] += speech[:-800] / 2
    expected *= np.sqrt(np.mean(speech**2) / np.mean(expected**2))
    wet = reverberate(speech, response)
    assert wet.dtype == np.float32
    np.testing.assert_allclose(wet, expected, atol=1e-6)


@pytest.mark.parametrize("length", [500, 8_000, 40_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_words_stay_where_they_are(speech, length, sign):
    rng = np.random.default_rng(1)
    response = (np.exp(-np.arange(length) / 100) * rng.standard_normal(length) / 10).astype(np.float32)
    response[100] = 3.0 * sign  # the direct sound, with the way to the microphone before it
    wet = reverberate(speech, response)
    assert len(wet) == len(speech)
    assert np.mean(wet**2) == pytest.approx(np.mean(speech**2), rel=1e-4)
    correlation = np.correlate(wet, speech, mode="full")
    assert np.abs(correlation).argmax() == len(speech) - 1


def test_silence_stays_silent():
    assert not reverberate(np.zeros(1_000, np.float32), np.ones(10, np.float32)).any()


def test_the_number_of_threads_changes_nothing(speech):
    response = np.random.default_rng(1).standard_normal(4_000).astype(np.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(reverberate(np.tile(speech, 10), response))
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(*results)
