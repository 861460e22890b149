"""Greedy decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lact_asr.inference.decoding.alphabet import CTCAlphabet, LogProbs
from lact_asr.inference.decoding.confidence import with_confidence
from lact_asr.inference.decoding.transcripts import Transcript, decode_rows


def words_of_path(labels: Sequence[str]) -> list[tuple[str, int, int]]:
    """Words that a path spells: repeats merged, blanks dropped.

    Args:
        labels: of `CTCAlphabet`, one a frame.

    Returns:
        (text, first frame, frame after the last) of each word.
    """
    words: list[tuple[str, int, int]] = []
    spelling, start, end, previous = "", 0, 0, ""
    for frame, label in enumerate([*labels, " "]):  # a space closes the last word
        if label == " ":
            if spelling:
                words.append((spelling, start, end))
            spelling = ""
        elif label:
            if label != previous:
                start = start if spelling else frame
                spelling += label
            end = frame + 1
        previous = label
    return words


class GreedyDecoder:
    """The best token of each frame, repeats merged, blanks dropped."""

    def __init__(self, vocabulary: Mapping[str, int], blank_id: int):
        """Set up for a tokenizer's vocabulary (token to id); raises `InputError` for one without text."""
        self.alphabet = CTCAlphabet(vocabulary, blank_id)

    def decode(self, log_probs: LogProbs, length: int | None = None) -> Transcript:
        """Decode one utterance; arguments and `ValueError` as in `CTCAlphabet.prepare`."""
        frames = self.alphabet.prepare(log_probs, length)
        words = words_of_path([self.alphabet.labels[index] for index in frames.argmax(axis=1)])
        score = float(frames.max(axis=1).sum()) if len(frames) else 0.0
        text = " ".join(spelling for spelling, _, _ in words)
        return Transcript(text, score, score, with_confidence(self.alphabet, frames, words))

    def decode_batch(self, log_probs: LogProbs, lengths: Sequence[int] | torch.Tensor) -> list[Transcript]:
        """Decode a padded batch: `log_probs` [B, T, V], `lengths` [B] in frames."""
        return decode_rows(self, log_probs, lengths)
