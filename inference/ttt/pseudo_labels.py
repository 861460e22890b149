"""CTC towards transcripts that models gave themselves, for test-time training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lact_asr.inference.ttt.objectives import at_least_float32


def pseudo_label_loss(logits: Tensor, blank_id: int, labels: Sequence[Tensor]) -> Tensor:
    """The mean over transcripts of −log p(transcript | utterance), CTC's (Graves et al. 2006).

    With the transcripts of an anchor, which never changes, and of a leader, which follows slowly, it is what AWMC's chaser
    minimises (Lee et al., ASRU 2023). Empty transcripts teach nothing but silence and are left out.

    Args:
        logits: [T, V] of one utterance.
        blank_id: the CTC blank.
        labels: transcripts, each [L] int64 without blanks, none too long for T frames.

    Returns:
        A scalar, at least float32; 0 where every transcript is empty.
    """
    log_probs = functional.log_softmax(at_least_float32(logits), dim=-1)
    losses = [
        functional.ctc_loss(log_probs, transcript, (len(logits),), (len(transcript),), blank_id, reduction="sum")
        for transcript in labels
        if len(transcript)
    ]
    return torch.stack(losses).mean() if losses else 0.0 * log_probs.sum()
