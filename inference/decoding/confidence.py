"""How sure the acoustic model is of each word.

The confidence of a word w that is heard in frames s to e is P(w | frames s … e), the sum over all CTC alignments of its characters to these
frames (Graves et al. 2006, equations 3 and 8). It needs no labels, no training and no language model: a word that the language model put in
against what was heard is doubted, and a long word more than a short one, since each of its characters has to be right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from lact_asr.inference.decoding.alphabet import CTCAlphabet
from lact_asr.inference.decoding.transcripts import TimedWord


def with_confidence(
    alphabet: CTCAlphabet, frames: np.ndarray, words: Sequence[tuple[str, int, int]]
) -> tuple[TimedWord, ...]:
    """Give each word its confidence.

    Args:
        alphabet: what the columns of `frames` mean.
        frames: float64 [T, U] log-probabilities of `CTCAlphabet.prepare`.
        words: (text, first frame, frame after the last) each.
    """
    if not words:
        return ()
    windows = [torch.from_numpy(frames[start:end]) for _, start, end in words]
    targets = [alphabet.spell(text) for text, _, _ in words]
    losses = functional.ctc_loss(
        pad_sequence(windows),
        torch.tensor([label for target in targets for label in target]),
        torch.tensor([len(window) for window in windows]),
        torch.tensor([len(target) for target in targets]),
        reduction="none",
    )
    confidences = losses.neg().exp().clamp(max=1.0).tolist()
    return tuple(TimedWord(*word, confidence) for word, confidence in zip(words, confidences, strict=True))
