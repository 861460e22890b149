"""The criterion that keeps the adapted transcript or the one before it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from lact_asr.inference.decoding import Transcript
from lact_asr.inference.ttt.choice import adapted_is_likelier, ctc_log_likelihood


def collapsed(path: tuple[int, ...]) -> list[int]:
    """Repeats merged, blanks (0) left out."""
    return [now for before, now in zip((None, *path), path, strict=False) if now not in (before, 0)]


@pytest.mark.parametrize("labels", [[], [1], [1, 2], [1, 1], [2, 1, 2], [1, 1, 1]])
def test_likelihood_is_the_sum_over_all_alignments(labels):
    log_probs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    paths = [path for path in itertools.product(range(3), repeat=4) if collapsed(path) == labels]
    likelihood = sum(math.exp(sum(log_probs[frame, token] for frame, token in enumerate(path))) for path in paths)
    expected = math.log(likelihood) if paths else -math.inf
    assert ctc_log_likelihood(log_probs, labels, 0) == pytest.approx(expected, abs=1e-5)


def emission(*favourites: tuple[int, float]) -> torch.Tensor:
    """[T, 3] log-probabilities with one class at a probability and the others sharing the rest."""
    rows = torch.tensor([[(1 - p) / 2] * 3 for _, p in favourites])
    for row, (token, p) in zip(rows, favourites, strict=True):
        row[token] = p
    return rows.log()


BEFORE, AFTER = Transcript("a", -1.0, -1.0), Transcript("b", -1.0, -1.0)


@pytest.mark.parametrize(("surer", "kept"), [(0.9, True), (0.6, False)])
def test_the_surer_model_wins(surer, kept):
    """Before: label 1 at 0.8; after: label 2 at another probability."""
    log_probs = emission((1, 0.8)), emission((2, surer))
    assert adapted_is_likelier(BEFORE, AFTER, log_probs, ([1], [2]), 0) is kept
    assert adapted_is_likelier(AFTER, BEFORE, log_probs, ([2], [1]), 0) is not kept


def test_the_language_model_has_a_say():
    """Its share is the score without the acoustic one."""
    log_probs = emission((1, 0.8)), emission((2, 0.6))
    convincing = Transcript("b", score=4.0, acoustic_score=-1.0)
    assert adapted_is_likelier(BEFORE, convincing, log_probs, ([1], [2]), 0)


def test_the_same_text_is_kept():
    log_probs = emission((1, 0.8), (2, 0.7)), emission((1, 0.9), (2, 0.4))
    assert adapted_is_likelier(BEFORE, BEFORE, log_probs, ([1, 2], [1, 2]), 0)
    a_rounding_less = Transcript("a", -1.0 - 1e-6, -1.0)  # as another batch gives it
    assert adapted_is_likelier(BEFORE, a_rounding_less, log_probs, ([1, 2], [1, 2]), 0)


def test_text_that_does_not_fit_into_the_frames_is_not_kept():
    log_probs = emission((1, 0.8)), emission((2, 0.9))
    assert not adapted_is_likelier(BEFORE, AFTER, log_probs, ([1], [2, 1]), 0)
