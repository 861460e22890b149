"""The language model's weight and word score, chosen on labelled utterances."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import torch
from tqdm import tqdm

from lact_asr.errors import InputError
from lact_asr.inference.decoding.alphabet import LogProbs
from lact_asr.inference.decoding.transcripts import Decoder
from lact_asr.metrics import ErrorCounts, corpus_word_errors
from lact_asr.text import normalise_text

DecoderFactory = Callable[[float, float], Decoder]


@dataclass(frozen=True)
class TuningRow:
    """Word errors of one pair of weights."""

    lm_weight: float
    word_score: float
    errors: ErrorCounts


def tune_language_model_weights(
    log_probs: Sequence[LogProbs],
    references: Sequence[str],
    decoder_factory: DecoderFactory,
    lm_weights: Sequence[float] = (0.25, 0.5, 0.75, 1.0, 1.5),
    word_scores: Sequence[float] = (0.0, 1.5, 3.0),
    processes: int = 1,
) -> tuple[float, float, list[TuningRow]]:
    """Search a grid for the weights with the fewest word errors on log-probabilities that were computed once.

    Args:
        log_probs: one [T, V] each, without padding.
        references: their texts; both sides are compared as `normalise_text` spells them.
        decoder_factory: called with (lm_weight, word_score). Decoders that share a `LanguageModel` share its word list.
        lm_weights, word_scores: the grid.
        processes: pairs to try at once, each in a process of its own; above 1, the factory is pickled. Results do not depend on it.

    Returns:
        The best lm_weight and word_score (of equals, the first in the grid's order), and all rows.

    Raises:
        ValueError: nothing to tune on, or other than one reference per utterance.
        InputError: a process was killed.
    """
    if not log_probs or len(log_probs) != len(references):
        raise ValueError(
            f"need one reference per utterance and at least one, not {len(references)} for {len(log_probs)}"
        )
    references = [normalise_text(reference) for reference in references]
    grid = list(itertools.product(lm_weights, word_scores))
    try_pair = functools.partial(_try_pair, log_probs, references, decoder_factory)
    rows = map(try_pair, grid) if processes == 1 else _in_processes(try_pair, grid, processes)
    rows = list(tqdm(rows, "tuning LM weights", len(grid), unit="pair", mininterval=1.0))
    best = min(rows, key=lambda row: row.errors.errors)
    return best.lm_weight, best.word_score, rows


def _try_pair(
    log_probs: Sequence[LogProbs], references: Sequence[str], factory: DecoderFactory, pair: tuple[float, float]
) -> TuningRow:
    decoder = factory(*pair)
    texts = [normalise_text(decoder.decode(frames).text) for frames in log_probs]
    return TuningRow(*pair, corpus_word_errors(references, texts))


def _in_processes(
    try_pair: Callable[[tuple[float, float]], TuningRow], grid: Sequence[tuple[float, float]], processes: int
) -> Iterator[TuningRow]:
    # Forked processes can hang in the thread pools that PyTorch had started before.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_set_up, initargs=(try_pair,)) as pool:
        try:
            yield from pool.map(_try_in_process, grid)
        except BrokenProcessPool as error:
            raise InputError(
                "A process was killed, perhaps for want of memory: each holds its own language model. Use fewer processes."
            ) from error


def _set_up(try_pair: Callable[[tuple[float, float]], TuningRow]) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = try_pair


def _try_in_process(pair: tuple[float, float]) -> TuningRow:
    return _worker(pair)
