"""Self-supervised losses for test-time training: functions of logits, without labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ENTROPY_TEMPERATURE = 2.5
ENTROPY_WEIGHT, CONFUSION_WEIGHT = 0.3, 0.7


def frame_entropy(logits: Tensor) -> Tensor:
    """H(p_t) = −Σ_v p_tv log p_tv in nats: [..., T, V] -> [..., T]."""
    log_probs = functional.log_softmax(logits, dim=-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def class_confusion(logits: Tensor) -> Tensor:
    """Minimum class confusion (Jin et al., arXiv 1912.03699): the share of class correlation off the diagonal.

    C = PᵀP over frames, each row normalised to 1; the loss is (Σ C − tr C) / V. It is low where frames that lean
    towards one class do not lean towards another, and, unlike entropy, high where every frame says the same.

    Args:
        logits: [T, V] float.

    Returns:
        A scalar in [0, 1).
    """
    probabilities = functional.softmax(logits, dim=-1)
    correlation = probabilities.mT @ probabilities
    # A class whose probability underflows in every frame correlates with nothing: 0, not 0 / 0.
    smallest = torch.finfo(correlation.dtype).tiny
    correlation = correlation / correlation.sum(dim=1, keepdim=True).clamp_min(smallest)
    return (correlation.sum() - correlation.diagonal().sum()) / logits.shape[-1]


def suta_objective(logits: Tensor, blank_id: int) -> Tensor:
    """0.3 · mean entropy of the non-blank frames + 0.7 · class confusion of all, at temperature 2.5.

    SUTA (Lin et al., arXiv 2203.14222). Plain entropy over all frames is dominated by blanks and hurts.

    Args:
        logits: [T, V] of one utterance.
        blank_id: the CTC blank; a frame is non-blank where another class is the most likely.

    Returns:
        A float32 scalar. Where every frame is blank only the class confusion is left: an entropy of no frames
        would be NaN, and 0 in its place would reward blanks.
    """
    spoken = logits.argmax(-1) != blank_id
    scaled = logits.float() / ENTROPY_TEMPERATURE
    loss = CONFUSION_WEIGHT * class_confusion(scaled)
    if bool(spoken.any()):
        loss = loss + ENTROPY_WEIGHT * frame_entropy(scaled[spoken]).mean()
    return loss


def is_silent(logits: Tensor, blank_id: int) -> bool:
    """Whether the blank is the most likely class of every frame of [T, V]."""
    return bool((logits.argmax(-1) == blank_id).all())


def all_finite(*tensors: Tensor) -> bool:
    """Whether no tensor holds NaN or infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
