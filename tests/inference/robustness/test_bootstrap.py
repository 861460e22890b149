"""Bootstrap intervals: they cover, they are paired, and they are the same every time."""

import numpy as np
import pytest

from lact_asr.inference.robustness.bootstrap import RESAMPLES, interval, resampled_rates, summed_by

WORDS_PER_UTTERANCE = 8


def simulated_errors(rng: np.random.Generator, utterances: int, rates: tuple[float, ...]) -> np.ndarray:
    """Errors [utterances, systems] whose expected rates are known; the systems stumble over the same hard utterances."""
    hardness = rng.uniform(0.2, 1.8, size=(utterances, 1))
    return rng.binomial(WORDS_PER_UTTERANCE, hardness * np.array(rates))


def test_intervals_cover_the_true_rate_and_difference():
    rng = np.random.default_rng(0)
    words = np.full(150, WORDS_PER_UTTERANCE)
    covered = {"rate": 0, "difference": 0}
    corpora = 200
    for seed in range(corpora):
        rates = resampled_rates(simulated_errors(rng, 150, (0.30, 0.25)), words, seed, resamples=400)
        low, high = interval(rates[:, 0])
        covered["rate"] += low <= 0.30 <= high
        low, high = interval(rates[:, 1] - rates[:, 0])
        covered["difference"] += low <= -0.05 <= high
    # 95 % of 200 is 190, with a standard deviation of 3.
    assert 180 <= covered["rate"] < corpora
    assert 180 <= covered["difference"] < corpora


def test_speakers_drawn_whole_cover_where_utterances_drawn_singly_do_not():
    """Forty speakers of ten utterances, each speaker with a rate of its own around 0.3."""
    rng = np.random.default_rng(3)
    speakers, words = np.repeat(np.arange(40), 10), np.full(400, WORDS_PER_UTTERANCE)
    covered = {"utterance": 0, "speaker": 0}
    for seed in range(200):
        rate = 0.3 * rng.uniform(0.2, 1.8, size=40)
        errors = rng.binomial(WORDS_PER_UTTERANCE, rate[speakers])[:, None]
        for unit, counts in (("utterance", (errors, words)), ("speaker", summed_by(speakers.tolist(), errors, words))):
            low, high = interval(resampled_rates(*counts, seed, resamples=400)[:, 0])
            covered[unit] += low <= 0.30 <= high
    assert 176 <= covered["speaker"] < 200  # 95 % of 200 is 190
    assert covered["utterance"] < 150


def test_sums_by_unit():
    errors, words = summed_by(["b", "a", "b"], np.array([[1, 2], [3, 4], [5, 6]]), np.array([7, 8, 9]))
    np.testing.assert_array_equal(errors, [[6, 8], [3, 4]])
    np.testing.assert_array_equal(words, [16, 8])


def test_paired_differences_are_narrower_than_unpaired_ones():
    rng = np.random.default_rng(1)
    hardness = rng.integers(0, WORDS_PER_UTTERANCE, size=300)
    errors = np.stack([hardness, np.maximum(0, hardness - (rng.random(300) < 0.2))], axis=1)
    words = np.full(300, WORDS_PER_UTTERANCE)
    paired = resampled_rates(errors, words, seed=0)
    other_draws = resampled_rates(errors, words, seed=1)
    low, high = interval(paired[:, 1] - paired[:, 0])
    unpaired_low, unpaired_high = interval(paired[:, 1] - other_draws[:, 0])
    assert high - low < 0.3 * (unpaired_high - unpaired_low)
    assert high < 0 < unpaired_high


def test_rates_are_ratios_of_sums():
    """One word wrong of one, none of nine: a corpus's rate is errors over words of all utterances that were drawn."""
    rates = resampled_rates(np.array([[1], [0]]), np.array([1, 9]), resamples=100)[:, 0]
    assert set(rates) == {0.0, 0.1, 1.0}
    assert len(resampled_rates(np.array([[1], [0]]), np.array([1, 9]))) == RESAMPLES


def test_draws_do_not_depend_on_the_number_of_systems_or_on_blocks(monkeypatch):
    rng = np.random.default_rng(2)
    errors, words = rng.integers(0, 9, size=(50, 3)), rng.integers(1, 20, size=50)
    together = resampled_rates(errors, words, seed=7)
    np.testing.assert_array_equal(resampled_rates(errors[:, :1], words, seed=7), together[:, :1])
    monkeypatch.setattr("lact_asr.inference.robustness.bootstrap._CELLS_AT_ONCE", 170)
    np.testing.assert_allclose(resampled_rates(errors, words, seed=7), together, rtol=1e-12)
    assert not np.array_equal(resampled_rates(errors, words, seed=8), together)


def test_an_interval_of_what_is_not_finite_is_none():
    assert interval(np.array([0.1, np.inf])) is None
    assert interval(np.array([0.1, np.nan])) is None
    assert interval(np.linspace(0, 1, 1001)) == pytest.approx((0.025, 0.975))
