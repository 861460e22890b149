"""Which transcript to keep: the adapted one, or the one from before test-time training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lact_asr.inference.decoding import Transcript


def ctc_log_likelihood(log_probs: Tensor, labels: Sequence[int], blank_id: int) -> float:
    """log P(labels | audio), summed over all alignments (Graves et al. 2006).

    Args:
        log_probs: [T, V] of one utterance.
        labels: token ids without blanks; none of them is the likelihood of silence.
        blank_id: the CTC blank.

    Returns:
        Nats; minus infinity where the labels do not fit into the frames.
    """
    target = torch.tensor([list(labels)], dtype=torch.long)
    loss = functional.ctc_loss(
        log_probs.float().cpu()[:, None], target, torch.tensor([len(log_probs)]), torch.tensor([len(labels)]),
        blank=blank_id, reduction="sum",
    )  # fmt: skip
    return -loss.item()


def adapted_is_likelier(
    before: Transcript, after: Transcript, log_probs: tuple[Tensor, Tensor], labels: tuple[Sequence[int], Sequence[int]],
    blank_id: int,
) -> bool:  # fmt: skip
    """Whether S(after) ≥ S(before), with S(y) = ½ [log P(y) + log P'(y)] + the language model's share of y; true of equal transcripts.

    Either model finds its own transcript the likelier one; the mean of the unadapted P and the adapted P' favours neither.
    The language model's share (its weight and the word scores included) is what the beam search gave; greedily it is 0.

    Args:
        before, after: transcripts of the unadapted and of the adapted model.
        log_probs: [T, V] each, of the unadapted and of the adapted model.
        labels: token ids of ``before`` and of ``after``.
        blank_id: the CTC blank.
    """

    def score(transcript: Transcript, ids: Sequence[int]) -> float:
        acoustic = sum(ctc_log_likelihood(frames, ids, blank_id) for frames in log_probs) / 2
        return acoustic + transcript.score - transcript.acoustic_score

    # Of equal transcripts the shares of the language model differ by rounding, which batches do otherwise.
    return list(labels[0]) == list(labels[1]) or score(after, labels[1]) >= score(before, labels[0])
