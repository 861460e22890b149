"""Where long recordings are cut, and what finds silence."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from lact_asr.errors import InputError
from lact_asr.inference.long_audio.silence_cutting import Piece, cut_at_silence
from lact_asr.inference.long_audio.voice_activity import EnergyActivity, choose_detector, make_voice_activity

RATE = 16_000
HAS_SILERO = importlib.util.find_spec("silero_vad") is not None


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Float32 [samples] of noise whose loudness changes as syllables do, never silent."""
    time = np.arange(round(seconds * RATE)) / RATE
    loudness = 0.2 * (1.2 + np.sin(2 * np.pi * 4 * time + seed))
    return (loudness * np.random.default_rng(seed).standard_normal(len(time))).astype(np.float32)


def background(seconds: float) -> np.ndarray:
    """Float32 [samples] of noise 40 dB below speech."""
    return (2e-3 * np.random.default_rng(9).standard_normal(round(seconds * RATE))).astype(np.float32)


def cut(samples: np.ndarray, longest: float = 10.0, pause: float = 0.5, block: float = 30.0) -> list[Piece]:
    blocks = np.split(samples, range(round(block * RATE), len(samples), round(block * RATE)))
    return list(cut_at_silence(blocks, longest, pause, EnergyActivity()))


def test_pieces_joined_are_the_recording_whatever_the_blocks():
    turns = [part for seed in range(12) for part in (speech(1.5 + 0.7 * seed, seed), background(0.15 + 0.08 * seed))]
    recording = np.concatenate(turns)
    pieces = cut(recording)
    assert len(pieces) > 8
    np.testing.assert_array_equal(np.concatenate([piece.samples for piece in pieces]), recording)
    assert [piece.start_seconds for piece in pieces[1:]] == [piece.end_seconds for piece in pieces[:-1]]
    assert all(1.0 <= len(piece.samples) / RATE <= 10.0 for piece in pieces)
    for block in (0.01, 3.3, 1000.0):
        others = cut(recording, block=block)
        assert [(one.start_sample, one.ends_in_speech) for one in others] == [
            (one.start_sample, one.ends_in_speech) for one in pieces
        ]


def test_what_came_before_damage_is_given_away_first():
    recording = np.concatenate([speech(3.0), background(1.0), speech(4.0, 1)])
    taken = []

    def damaged():
        yield recording
        raise InputError("a.flac is damaged.")

    with pytest.raises(InputError, match="damaged"):
        taken.extend(cut_at_silence(damaged(), 30.0, 0.5, EnergyActivity()))
    np.testing.assert_array_equal(np.concatenate([piece.samples for piece in taken]), recording)


@pytest.mark.parametrize("noise_db", [None, 15])
def test_every_pause_ends_a_piece_in_its_middle(noise_db):
    pauses = (0.7, 1.5, 0.6, 3.0)
    turns = [part for seed, pause in enumerate(pauses) for part in (speech(3.0, seed), 0 * background(pause))]
    recording = np.concatenate([*turns, speech(2.0)])
    if noise_db is not None:
        level = np.sqrt(np.mean(speech(3.0) ** 2)) * 10 ** (-noise_db / 20)
        recording = recording + (level * np.random.default_rng(1).standard_normal(len(recording))).astype(np.float32)
    pieces = cut(recording)
    middles = 3.0 * np.arange(1, 5) + np.cumsum(pauses) - np.array(pauses) / 2
    np.testing.assert_allclose([piece.end_seconds for piece in pieces[:-1]], middles, atol=0.05)
    assert not any(piece.ends_in_speech for piece in pieces)


def test_long_pieces_end_in_the_longest_silence_of_their_second_half():
    recording = np.concatenate(
        [speech(3), background(0.45), speech(3), background(0.4), speech(1), background(0.3), speech(4)]
    )
    first, second = cut(recording, pause=np.inf)
    assert first.end_seconds == pytest.approx(3 + 0.45 + 3 + 0.2, abs=0.05)
    assert not first.ends_in_speech
    assert second.end_seconds == len(recording) / RATE


def test_without_a_pause_the_cut_is_at_the_quietest_point_and_says_so():
    recording = speech(25.0)
    dip = slice(round(7.3 * RATE), round(7.4 * RATE))
    recording[dip] *= 0.2
    pieces = cut(recording)
    assert pieces[0].end_seconds == pytest.approx(7.35, abs=0.06)
    assert [piece.ends_in_speech for piece in pieces] == [True] * (len(pieces) - 1) + [False]


def test_a_recording_below_the_limit_without_a_pause_stays_whole():
    (piece,) = cut(speech(9.5))
    assert (piece.start_sample, len(piece.samples)) == (0, round(9.5 * RATE))
    assert cut(np.empty(0, np.float32)) == []


def test_silence_alone_is_cut_as_well():
    pieces = cut(np.zeros(25 * RATE, np.float32))
    assert sum(len(piece.samples) for piece in pieces) == 25 * RATE
    assert all(len(piece.samples) <= 10 * RATE for piece in pieces)


@pytest.mark.skipif(HAS_SILERO, reason="silero-vad is installed")
def test_a_missing_detector_says_what_to_install():
    assert choose_detector("auto") == "energy"
    with pytest.raises(InputError, match=r"needs the package silero-vad: pip install 'lact-asr\[vad\]'"):
        make_voice_activity("silero")


@pytest.mark.skipif(not HAS_SILERO, reason="the package silero-vad is not installed (extra vad)")
def test_silero_hears_no_speech_in_noise_whatever_the_portions():
    assert choose_detector("auto") == "silero"
    noise = speech(2.0)
    whole = make_voice_activity("silero")
    activity = whole(noise)
    assert len(activity) == len(noise) // 512
    assert (activity < whole.threshold(activity)).mean() > 0.9
    in_portions = make_voice_activity("silero")
    parts = [in_portions(part) for part in np.array_split(noise, 17)]
    np.testing.assert_allclose(np.concatenate(parts), activity, atol=1e-5)
