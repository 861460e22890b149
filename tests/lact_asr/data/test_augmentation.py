"""Speed, rooms and noise: lengths, pitch, shares, and results that follow from seed and key alone."""

import numpy as np
import pytest

from lact_asr.data.augmentation import WaveformAugmentation, change_speed
from lact_asr.data.noise import NoiseMixer
from lact_asr.data.reverberation import reverberate
from lact_asr.errors import InputError

KEYS = [f"utterance-{number}" for number in range(200)]


@pytest.fixture
def tone():
    """One second of 440 Hz, float32 [16000]."""
    return np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32) * 0.5


@pytest.fixture
def mixer():
    return NoiseMixer({"hiss": np.random.default_rng(0).normal(0, 0.1, 8_000).astype(np.float32)}, 10.0, 3)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 2.0])
def test_speed_changes_duration_and_pitch(tone, factor):
    changed = change_speed(tone, factor)
    assert changed.dtype == np.float32
    assert len(changed) == pytest.approx(16_000 / factor, abs=2)
    spectrum = np.abs(np.fft.rfft(changed))
    peak_hz = np.argmax(spectrum) * 16_000 / len(changed)
    assert peak_hz == pytest.approx(440 * factor, abs=2)
    assert np.abs(changed[1_000:-1_000]).max() == pytest.approx(0.5, rel=0.01)


def test_speed_of_one_leaves_samples_alone(tone):
    assert change_speed(tone, 1.0) is tone


def test_speeds_are_drawn_evenly_and_all_used(tone):
    augment = WaveformAugmentation((0.8, 1.0, 1.25), seed=1)
    lengths = [len(augment(tone, key)) for key in KEYS]
    counts = {length: lengths.count(length) for length in (20_000, 16_000, 12_800)}
    assert sum(counts.values()) == len(KEYS)
    assert all(count > len(KEYS) / 5 for count in counts.values())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_noise_is_added_to_its_share_of_utterances(tone, mixer, share):
    augment = WaveformAugmentation(mixer=mixer, noise_prob=share)
    noisy = sum(not np.array_equal(augment(tone, key), tone) for key in KEYS)
    assert noisy == pytest.approx(share * len(KEYS), abs=0.1 * len(KEYS) * (0 < share < 1))


def test_noise_comes_after_the_speed_change_at_the_level_asked_for(tone, mixer):
    augmented = WaveformAugmentation((1.25,), mixer, noise_prob=1.0)(tone, "a")
    clean = change_speed(tone, 1.25)
    noise = augmented - clean
    assert 10 * np.log10(np.mean(clean**2) / np.mean(noise**2)) == pytest.approx(10.0, abs=0.05)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_utterances_is_put_into_rooms_before_noise_comes(tone, mixer, share):
    responses = [np.array([1.0, 0.0, 0.5], np.float32), np.array([0.0, 1.0, -0.9, 0.1], np.float32)]
    heard = {reverberate(tone, response).tobytes(): 0 for response in responses} | {tone.tobytes(): 0}
    augment = WaveformAugmentation(impulse_responses=dict(zip("ab", responses, strict=True)), rir_prob=share)
    for key in KEYS:
        heard[augment(tone, key).tobytes()] += 1
    in_rooms = len(KEYS) - heard.pop(tone.tobytes())
    assert in_rooms == pytest.approx(share * len(KEYS), abs=0.1 * len(KEYS) * (0 < share < 1))
    assert all(count > in_rooms / 3 for count in heard.values()) or share == 0
    rooms = {"a": responses[0]}
    noisy = WaveformAugmentation(mixer=mixer, noise_prob=1.0, impulse_responses=rooms, rir_prob=1.0)(tone, "a")
    np.testing.assert_array_equal(noisy, mixer(reverberate(tone, responses[0]), "a"))


def test_results_follow_from_seed_and_key_alone(tone, mixer):
    responses = {"a": np.array([1.0, 0.5], np.float32), "b": np.array([1.0, -0.5], np.float32)}
    flags = {"speed_factors": (0.9, 1.0, 1.1), "mixer": mixer, "noise_prob": 0.5, "impulse_responses": responses}
    forwards = [WaveformAugmentation(**flags, seed=7)(tone, key) for key in KEYS[:20]]
    augment = WaveformAugmentation(**flags, seed=7)
    backwards = [augment(tone, key) for key in reversed(KEYS[:20])][::-1]
    assert all(np.array_equal(left, right) for left, right in zip(forwards, backwards, strict=True))
    other_seed = [WaveformAugmentation(**flags, seed=8)(tone, key) for key in KEYS[:20]]
    assert [len(samples) for samples in other_seed] != [len(samples) for samples in forwards]
    assert len({len(samples) for samples in forwards}) == 3  # keys differ


def test_input_is_left_as_it_is(tone, mixer):
    before = tone.copy()
    WaveformAugmentation((1.0, 1.1), mixer, noise_prob=1.0)(tone, "a")
    assert np.array_equal(tone, before)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"speed_factors": ()}, "speed factors"),
        ({"speed_factors": (1.0, 0.4)}, "0.4"),
        ({"speed_factors": (2.1,)}, "2.1"),
        ({"speed_factors": (float("nan"),)}, "nan"),
        ({"noise_prob": 1.5}, "1.5"),
        ({"noise_prob": -0.1}, "-0.1"),
        ({"rir_prob": 1.1}, "rooms must be between 0 and 1, not 1.1"),
    ],
)
def test_impossible_settings_are_refused(flags, named):
    with pytest.raises(InputError, match=named):
        WaveformAugmentation(**flags)
