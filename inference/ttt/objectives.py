"""Self-supervised losses for test-time training: functions of logits, without labels."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

TEMPERATURE = 2.5  # SUTA's and SGEM's
ENTROPY_WEIGHT, CONFUSION_WEIGHT = 0.3, 0.7
RENYI_ORDER = 1.5
UNLIKELY = 0.4  # times the probability of a uniform distribution


def at_least_float32(values: Tensor) -> Tensor:
    """What losses are computed in: 16 bits are too few for sums over frames, and float64 stays what it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def frame_entropy(logits: Tensor) -> Tensor:
    """H(p_t) = −Σ_v p_tv log p_tv in nats: [..., T, V] -> [..., T]."""
    log_probs = functional.log_softmax(logits, dim=-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def class_confusion(logits: Tensor) -> Tensor:
    """Minimum class confusion (Jin et al., arXiv 1912.03699): the share of class correlation off the diagonal.

    C = Pᵀ diag(w) P over frames, each row normalised to 1; the loss is (Σ C − tr C) / V. Certain frames weigh up to twice as
    much: w_t ∝ 1 + exp(−H_t) with mean 1, through which no gradient flows. It is low where frames that lean
    towards one class do not lean towards another, and, unlike entropy, high where every frame says the same.

    Args:
        logits: [T, V] float.

    Returns:
        A scalar in [0, 1).
    """
    probabilities = functional.softmax(logits, dim=-1)
    weights = 1 + torch.exp(-frame_entropy(logits.detach()))
    correlation = (weights / weights.mean() * probabilities.mT) @ probabilities
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
        A scalar, at least float32. Where every frame is blank only the class confusion is left: an entropy of no frames
        would be NaN, and 0 in its place would reward blanks.
    """
    scaled = at_least_float32(logits) / TEMPERATURE
    loss = CONFUSION_WEIGHT * class_confusion(scaled)
    spoken = logits.argmax(-1) != blank_id
    if bool(spoken.any()):
        loss = loss + ENTROPY_WEIGHT * frame_entropy(scaled[spoken]).mean()
    return loss


def tent_objective(logits: Tensor) -> Tensor:
    """The mean entropy of all frames of [T, V] (Tent, Wang et al., arXiv 2006.10726): a scalar, at least float32."""
    return frame_entropy(at_least_float32(logits)).mean()


def renyi_entropy(logits: Tensor, alpha: float) -> Tensor:
    """H_α(p_t) = log Σ_v p_tv^α / (1 − α) in nats, α other than 1: [..., T, V] -> [..., T]."""
    return torch.logsumexp(alpha * functional.log_softmax(logits, dim=-1), dim=-1) / (1 - alpha)


def negative_sampling(logits: Tensor) -> Tensor:
    """−mean_t log(1 − Σ p_tv over the classes that are unlikely): a scalar of [T, V], at least float32.

    Unlikely are those whose probability is below 0.4 / V; p is at temperature 2.5 (SGEM, Kim et al., arXiv 2306.01981).
    """
    scaled = functional.softmax(at_least_float32(logits) / TEMPERATURE, dim=-1)
    unlikely = functional.softmax(at_least_float32(logits), dim=-1) < UNLIKELY / logits.shape[-1]
    return -torch.log1p(-(scaled * unlikely).sum(-1)).mean()


def generalised_entropy(logits: Tensor, blank_id: int, path: Tensor | None = None) -> Tensor:
    """Mean Rényi entropy (α = 1.5, temperature 2.5) of the non-blank frames, plus `negative_sampling` of all.

    SGEM's objective (arXiv 2306.01981).

    Args:
        logits: [T, V] of one utterance.
        blank_id: the CTC blank.
        path: [T] int64, the class of each frame on a decoder's best path; None takes the greedy path.
    """
    loss = negative_sampling(logits)
    spoken = (logits.argmax(-1) if path is None else path) != blank_id
    if bool(spoken.any()):
        loss = loss + renyi_entropy(at_least_float32(logits[spoken]) / TEMPERATURE, RENYI_ORDER).mean()
    return loss


def spoken_entropy(logits: Tensor, blank_id: int, temperature: float = 1.0) -> Tensor:
    """The mean entropy of the non-blank frames of [T, V], at least float32; 0 without a gradient's direction where all are blank.

    What SAR (Niu et al., arXiv 2302.12400) minimises and judges reliability by, for CTC as in E-BATS' comparison (arXiv 2506.07078).
    """
    spoken = logits.argmax(-1) != blank_id
    if not bool(spoken.any()):
        return 0.0 * at_least_float32(logits).sum()
    return frame_entropy(at_least_float32(logits[spoken]) / temperature).mean()


def confidence_entropy(logits: Tensor, blank_id: int) -> Tensor:
    """0.3 · mean_t σ(H_t) H_t of the non-blank frames + 0.7 · class confusion of all, at temperature 2.5.

    The first stage of CEA (Liu et al., arXiv 2310.09505): uncertain frames, which carry meaning in speech, weigh more than
    certain ones. The weight σ(H) = 1 / (1 + exp(−H)) takes part in the gradient, as in the authors' code.

    Args:
        logits: [T, V] of one utterance.
        blank_id: the CTC blank.

    Returns:
        A scalar, at least float32; as `suta_objective` where every frame is blank.
    """
    scaled = at_least_float32(logits) / TEMPERATURE
    loss = CONFUSION_WEIGHT * class_confusion(scaled)
    spoken = logits.argmax(-1) != blank_id
    if bool(spoken.any()):
        entropy = frame_entropy(scaled[spoken])
        loss = loss + ENTROPY_WEIGHT * (torch.sigmoid(entropy) * entropy).mean()
    return loss


def view_consistency(first: Tensor, second: Tensor) -> Tensor:
    """½ Σ of both Kullback-Leibler divergences between two views' frames, each towards the other's fixed output.

    ½ mean_t [KL(sg(p_t) ‖ q_t) + KL(sg(q_t) ‖ p_t)] (the consistency loss of CR-CTC, Yao et al., arXiv 2410.05101, as a mean over frames).

    Args:
        first, second: logits [T, V] of one utterance under two masks.

    Returns:
        A scalar, at least float32.
    """
    p, q = (functional.log_softmax(at_least_float32(logits), dim=-1) for logits in (first, second))
    towards = functional.kl_div(q, p.detach(), reduction="none", log_target=True)
    back = functional.kl_div(p, q.detach(), reduction="none", log_target=True)
    return 0.5 * (towards + back).sum(-1).mean()


def is_all_blank(logits: Tensor, blank_id: int) -> bool:
    """Whether the blank is the most likely class of every frame of [T, V]."""
    return bool((logits.argmax(-1) == blank_id).all())


def all_finite(*tensors: Tensor) -> bool:
    """Whether no tensor holds NaN or infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def finite_rows(tensors: Iterable[Tensor], rows: int) -> list[bool]:
    """For each row of tensors [rows, ...] (of a single one also without this axis) whether none holds NaN or infinity in it.

    Looks at sums in float32, in a seventh of the time; finite values near its largest number would pass for infinite ones.
    """
    sums = [tensor.reshape(rows, -1).sum(1, dtype=torch.float32) for tensor in tensors]
    # Added where they are: a GPU is waited for once.
    return torch.isfinite(torch.stack(sums).sum(0)).tolist() if sums else [True] * rows
