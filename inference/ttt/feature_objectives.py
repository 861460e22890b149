"""Self-supervised losses for test-time training that look at features and hidden states beside the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from lact_asr.inference.ttt.objectives import (
    CONFUSION_WEIGHT,
    ENTROPY_WEIGHT,
    TEMPERATURE,
    at_least_float32,
    class_confusion,
    spoken_entropy,
    tent_objective,
)
from lact_asr.inference.ttt.statistics import FeatureStatistics

COHERENCE_WEIGHT = 0.3
E_BATS_TEMPERATURE, ALIGNMENT_WEIGHT, CONFIDENT_LOSS = 2.0, 2.0, 5.0
ENTROPY_OF_BLANKS = 10.0  # what E-BATS counts where no frame speaks


def temporal_coherence(features: Tensor, logits: Tensor, blank_id: int) -> Tensor:
    """mean_t ‖z_t − z_{t−1}‖₂ over the frames t that are not blank, z = softmax(F Fᵀ) F + F.

    Short-term consistency of CEA (arXiv 2310.09505): speech changes little from frame to frame.

    Args:
        features: F [T, C], the front end's output.
        logits: [T, V] of the same frames.
        blank_id: the CTC blank.

    Returns:
        A scalar, at least float32, 0 where no frame but the first speaks.
    """
    frames = at_least_float32(features)
    spoken = (logits.argmax(-1) != blank_id)[1:]
    smoothed = torch.softmax(frames @ frames.mT, dim=-1) @ frames + frames
    steps = (smoothed[1:] - smoothed[:-1])[spoken]
    return torch.linalg.vector_norm(steps, dim=-1).sum() / max(1, len(steps))


def coherent_entropy(features: Tensor, logits: Tensor, blank_id: int) -> Tensor:
    """0.3 · mean entropy of all frames + 0.7 · class confusion, at temperature 2.5, + 0.3 · `temporal_coherence`.

    The second stage of CEA (arXiv 2310.09505); arguments as there.
    """
    scaled = at_least_float32(logits) / TEMPERATURE
    loss = ENTROPY_WEIGHT * tent_objective(scaled) + CONFUSION_WEIGHT * class_confusion(scaled)
    return loss + COHERENCE_WEIGHT * temporal_coherence(features, logits, blank_id)


def utterance_alignment(features: Tensor, hidden_states: Tensor, source: FeatureStatistics) -> Tensor:
    """‖mean_t F_t − μ_F‖² + (1 / D) Σ_l ‖mean_t h_lt − μ_l‖², with μ the means in training.

    The utterance's part of E-BATS' alignment (Dong et al., arXiv 2506.07078). The division by D, as in the authors' code, keeps
    hidden states from outweighing features.

    Args:
        features: F [T, C].
        hidden_states: h [L, T, D].
        source: statistics of the same model in training.

    Returns:
        A scalar, at least float32.
    """
    of_features = (at_least_float32(features).mean(0) - source.feature_mean).square().sum()
    of_hidden_states = (at_least_float32(hidden_states).mean(1) - source.hidden_mean).square().sum()
    return of_features + of_hidden_states / hidden_states.shape[-1]


def token_alignment(hidden_states: Tensor, logits: Tensor, blank_id: int, source: FeatureStatistics) -> Tensor:
    """The mean over said tokens of mean_{l,d} [(mean h − μ_v)² + (std h − σ_v)²] over the frames that say token v.

    The token's part of E-BATS' alignment (arXiv 2506.07078). Tokens are the most likely classes, the blank left out, and
    those that training never said.

    Args:
        hidden_states: h [L, T, D].
        logits: [T, V] of the same frames.
        blank_id: the CTC blank.
        source: statistics of the same model in training.

    Returns:
        A scalar, at least float32, 0 where no such token is said.
    """
    said = logits.argmax(-1)
    tokens = [token for token in said.unique().tolist() if token != blank_id and source.token_count[token] > 0]
    total = 0.0 * at_least_float32(hidden_states).sum()
    for token in tokens:
        frames = at_least_float32(hidden_states[:, said == token])
        variance, mean = torch.var_mean(frames, dim=1, correction=0)
        deviation = variance.clamp_min(
            torch.finfo(variance.dtype).tiny
        ).sqrt()  # a token of one frame has no root's gradient
        off_mean = (mean - source.token_mean[token]).square().mean()
        off_deviation = (deviation - source.token_variance[token].sqrt()).square().mean()
        total = total + (off_mean + off_deviation) / len(tokens)
    return total


def e_bats_objective(
    features: Tensor, hidden_states: Tensor, logits: Tensor, blank_id: int, source: FeatureStatistics
) -> Tensor:
    """E + 2 A + w · `token_alignment`, with E the entropy of non-blank frames at temperature 2 and A `utterance_alignment`.

    E-BATS (arXiv 2506.07078). w = 2 − clamp((E + 2 A) / 5, 0, 2), without gradient: the less certain the tokens are, the less
    their alignment counts. An utterance whose frames are all blank counts an entropy of 10.

    Args:
        features: [T, C].
        hidden_states: [L, T, D].
        logits: [T, V].
        blank_id: the CTC blank.
        source: statistics of the same model in training.

    Returns:
        A scalar, at least float32.
    """
    entropy = spoken_entropy(logits, blank_id, E_BATS_TEMPERATURE)
    if bool((logits.argmax(-1) == blank_id).all()):
        entropy = entropy + ENTROPY_OF_BLANKS
    loss = entropy + ALIGNMENT_WEIGHT * utterance_alignment(features, hidden_states, source)
    weight = 2 - (loss.detach() / CONFIDENT_LOSS).clamp(0, 2)
    return loss + weight * token_alignment(hidden_states, logits, blank_id, source)
