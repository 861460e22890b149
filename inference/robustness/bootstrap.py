"""Confidence intervals of error rates: the percentile bootstrap over utterances or speakers (Bisani and Ney 2004)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES = 2_000
CONFIDENCE = 0.95
_CELLS_AT_ONCE = 4_000_000


def resampled_rates(errors: np.ndarray, words: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Error rates of resampled corpora: utterances are drawn with replacement, a rate is errors over words of all of them.

    Every system sees the same draws, so that differences of its columns are those of the *paired* bootstrap.

    Args:
        errors: Float or int [utterances, systems].
        words: Float or int [utterances], at least 1 each.
        seed: Decides the draws.
        resamples: Number of corpora.

    Returns:
        float64 [resamples, systems].
    """
    rng = np.random.default_rng(seed)
    utterances = len(words)
    block = max(1, _CELLS_AT_ONCE // utterances)
    rates = []
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        times_drawn = rng.multinomial(utterances, np.full(utterances, 1 / utterances), size=rows).astype(np.float64)
        rates.append((times_drawn @ errors) / (times_drawn @ words)[:, None])
    return np.concatenate(rates)


def summed_by(units: Sequence[Hashable], *counts: np.ndarray) -> list[np.ndarray]:
    """Counts [utterances, …] summed over the utterances of each unit, [units, …]: units are then what `resampled_rates` draws.

    Utterances of one speaker go right or wrong together; drawn one by one, they make intervals too narrow.
    """
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    places = [numbers[unit] for unit in units]
    sums = [np.zeros((len(numbers), *count.shape[1:]), count.dtype) for count in counts]
    for total, count in zip(sums, counts, strict=True):
        np.add.at(total, places, count)
    return sums


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """The central 95 % of resampled values [resamples]; None where one is not finite (a ratio to an error rate of 0)."""
    if not np.isfinite(values).all():
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)
