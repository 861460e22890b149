"""The language model's weight and word score, chosen on labelled utterances."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from lact_asr.inference.decoding.alphabet import LogProbs
from lact_asr.inference.decoding.transcripts import Decoder
from lact_asr.metrics import ErrorCounts, corpus_word_errors


@dataclass(frozen=True)
class TuningRow:
    """Word errors of one pair of weights."""

    lm_weight: float
    word_score: float
    errors: ErrorCounts


def tune_language_model_weights(
    log_probs: Sequence[LogProbs],
    references: Sequence[str],
    decoder_factory: Callable[[float, float], Decoder],
    lm_weights: Sequence[float] = (0.25, 0.5, 0.75, 1.0, 1.5),
    word_scores: Sequence[float] = (0.0, 1.5, 3.0),
) -> tuple[float, float, list[TuningRow]]:
    """Search a grid for the weights with the fewest word errors on log-probabilities that were computed once.

    Args:
        log_probs: one [T, V] each, without padding.
        references: their texts.
        decoder_factory: called with (lm_weight, word_score). Decoders that share a `LanguageModel` share its word list.
        lm_weights, word_scores: the grid.

    Returns:
        The best lm_weight and word_score (of equals, the first in the grid's order), and all rows.

    Raises:
        ValueError: nothing to tune on, or other than one reference per utterance.
    """
    if not log_probs or len(log_probs) != len(references):
        raise ValueError(
            f"need one reference per utterance and at least one, not {len(references)} for {len(log_probs)}"
        )
    grid = list(itertools.product(lm_weights, word_scores))
    rows = []
    with tqdm(
        total=len(grid) * len(log_probs), desc="tuning LM weights", unit="utterance", mininterval=1.0
    ) as progress:
        for lm_weight, word_score in grid:
            decoder = decoder_factory(lm_weight, word_score)
            hypotheses = []
            for utterance in log_probs:
                hypotheses.append(decoder.decode(utterance).text)
                progress.update()
            rows.append(TuningRow(lm_weight, word_score, corpus_word_errors(references, hypotheses)))
    best = min(rows, key=lambda row: row.errors.errors)
    return best.lm_weight, best.word_score, rows
