"""Expected word errors: what transcripts are judged by, as a loss with gradients."""

from __future__ import annotations

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from torch.nn import functional

from lact_asr.inference.alignment.ctc_paths import collapse_path

HYPOTHESES = 8  # an utterance: the greedy one, and draws


def expected_word_errors(logits: Tensor, lengths: Tensor, labels: Tensor, blank_id: int, delimiter_id: int) -> Tensor:
    """The word error rate that is expected over a few transcripts of each utterance.

    Σ_rows Σ_n P̂(y_n) E(y_n) / Σ_rows words, with P̂ the likelihoods of CTC, made to sum to 1 over the transcripts y_n, and
    E their word errors (minimum word error rate training, Prabhavalkar et al., arXiv 1712.01818, equation 3, whose
    transcripts come from a beam). Here they are the greedy one and draws of paths, frame by frame, from the model's distribution:
    no search, and a batch at a time.

    Args:
        logits: [B, T, V] float.
        lengths: [B] int64, the valid length of each row.
        labels: [B, L] int64, negative for padding.
        blank_id: the CTC blank.
        delimiter_id: the label between words.

    Returns:
        A float32 scalar; 0 where no reference has a word.
    """
    log_probs = functional.log_softmax(logits.float(), dim=-1)
    errors, words = log_probs.new_zeros(()), 0
    for row, length, reference in zip(log_probs, lengths.tolist(), labels, strict=True):
        reference_words = _words(reference[reference >= 0].tolist(), delimiter_id)
        words += len(reference_words)
        frames = row[:length]
        hypotheses = _hypotheses(frames.detach(), blank_id)
        counts = [Levenshtein.distance(_words(labels, delimiter_id), reference_words) for labels in hypotheses]
        weights = functional.softmax(_log_likelihoods(frames, hypotheses, blank_id), dim=0)
        errors = errors + weights @ torch.tensor(counts, dtype=weights.dtype, device=weights.device)
    return errors / max(1, words)


def _hypotheses(log_probs: Tensor, blank_id: int) -> list[tuple[int, ...]]:
    """Different transcripts, as labels, of [T, V]; the first is the greedy one."""
    drawn = torch.multinomial(log_probs.exp(), HYPOTHESES - 1, replacement=True)
    paths = torch.cat([log_probs.argmax(-1)[:, None], drawn], dim=1).T.cpu()
    return list(dict.fromkeys(tuple(collapse_path(path, blank_id).tolist()) for path in paths))


def _log_likelihoods(log_probs: Tensor, hypotheses: list[tuple[int, ...]], blank_id: int) -> Tensor:
    """log P(y_n) of [T, V], over all alignments (CTC): [N]."""
    count, frames = len(hypotheses), len(log_probs)
    targets = torch.tensor([label for labels in hypotheses for label in labels], device=log_probs.device)
    target_lengths = torch.tensor([len(labels) for labels in hypotheses])
    return -functional.ctc_loss(
        log_probs[:, None].expand(frames, count, -1), targets, torch.full((count,), frames), target_lengths, blank_id,
        reduction="none",
    )  # fmt: skip


def _words(labels: list[int] | tuple[int, ...], delimiter_id: int) -> list[tuple[int, ...]]:
    words, word = [], []
    for label in (*labels, delimiter_id):
        if label != delimiter_id:
            word.append(label)
        elif word:
            words.append(tuple(word))
            word = []
    return words
