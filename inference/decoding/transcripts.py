"""What decoders give, and the interface that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from lact_asr.inference.decoding.alphabet import LogProbs


@dataclass(frozen=True)
class TimedWord:
    """A word, the frames that spell it, and how sure the acoustic model is of it.

    Attributes:
        text: its characters.
        start_frame, end_frame: the first frame, and the one after the last.
        confidence: 0 to 1, the probability that these frames spell this word (`lact_asr.inference.decoding.confidence`).
    """

    text: str
    start_frame: int
    end_frame: int
    confidence: float


@dataclass(frozen=True)
class Transcript:
    """What a decoder made of an utterance.

    Attributes:
        text: words with single spaces; empty for silence.
        score: natural logarithm by which hypotheses were ranked: acoustic score plus, with a language model, its share and the word scores.
        acoustic_score: log-probability of the best path (greedy) or of all paths in the beam that spell the text (beam search).
        words: the words with their frames.
        alternatives: with `n_best` above 1, the next best transcripts, best first, each without alternatives of its own.
    """

    text: str = ""
    score: float = 0.0
    acoustic_score: float = 0.0
    words: tuple[TimedWord, ...] = ()
    alternatives: tuple[Transcript, ...] = ()


class Decoder(Protocol):
    """What the decoders have in common."""

    def decode(self, log_probs: LogProbs, length: int | None = None) -> Transcript:
        """Decode one utterance: `log_probs` [T, V] floating point on any device, of which the first `length` frames (default: all) count."""

    def decode_batch(self, log_probs: LogProbs, lengths: Sequence[int] | torch.Tensor) -> list[Transcript]:
        """Decode a padded batch: `log_probs` [B, T, V], `lengths` [B] in frames."""


def decode_rows(decoder: Decoder, log_probs: LogProbs, lengths: Sequence[int] | torch.Tensor) -> list[Transcript]:
    """`Decoder.decode_batch` by `Decoder.decode`.

    Raises:
        ValueError: shapes that do not go together.
    """
    if log_probs.ndim != 3 or len(lengths) != log_probs.shape[0]:
        raise ValueError(f"need log_probs [B, T, V] and B lengths, not {tuple(log_probs.shape)} and {len(lengths)}")
    if isinstance(log_probs, torch.Tensor):
        log_probs = log_probs.detach().cpu()  # one transfer for the batch
    return [decoder.decode(row, int(length)) for row, length in zip(log_probs, lengths, strict=True)]
