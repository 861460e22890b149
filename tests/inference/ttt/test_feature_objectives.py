"""Losses on features and hidden states against loops in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lact_asr.inference.ttt.feature_objectives import (
    coherent_entropy,
    e_bats_objective,
    temporal_coherence,
    token_alignment,
    utterance_alignment,
)
from lact_asr.inference.ttt.objectives import class_confusion, confidence_entropy, frame_entropy, spoken_entropy
from lact_asr.inference.ttt.statistics import FeatureStatistics

BLANK, FRAMES, CHANNELS, LAYERS, WIDTH, CLASSES = 0, 9, 4, 2, 3, 5


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(FRAMES, CHANNELS, dtype=torch.float64)


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(LAYERS, FRAMES, WIDTH, dtype=torch.float64)


@pytest.fixture
def logits() -> torch.Tensor:
    said = torch.tensor([0, 2, 2, 0, 3, 3, 4, 2, 0])
    return torch.randn(FRAMES, CLASSES, dtype=torch.float64) + 8 * torch.nn.functional.one_hot(said, CLASSES)


@pytest.fixture
def source() -> FeatureStatistics:
    shapes = [(CHANNELS,)] * 2 + [(LAYERS, WIDTH)] * 2 + [(CLASSES, LAYERS, WIDTH)] * 2
    return FeatureStatistics(*(torch.rand(shape) for shape in shapes), token_count=torch.tensor([9, 9, 9, 9, 0]))


def test_temporal_coherence(features, logits):
    frames, total = features.numpy(), 0.0
    similarity = np.exp(frames @ frames.T)
    smoothed = similarity / similarity.sum(1, keepdims=True) @ frames + frames
    spoken = [t for t in range(1, FRAMES) if logits[t].argmax() != BLANK]
    for t in spoken:
        total += np.sqrt(((smoothed[t] - smoothed[t - 1]) ** 2).sum())
    np.testing.assert_allclose(temporal_coherence(features, logits, BLANK), total / len(spoken), rtol=1e-5)
    softened = logits / 2.5
    expected = 0.3 * frame_entropy(softened).mean() + 0.7 * class_confusion(softened) + 0.3 * total / len(spoken)
    np.testing.assert_allclose(coherent_entropy(features, logits, BLANK), expected, rtol=1e-5)


def test_uncertain_frames_weigh_more(logits):
    h = frame_entropy(logits / 2.5)[logits.argmax(-1) != BLANK].numpy()
    expected = 0.3 * np.mean(h / (1 + np.exp(-h))) + 0.7 * class_confusion(logits / 2.5).item()
    np.testing.assert_allclose(confidence_entropy(logits, BLANK), expected, rtol=1e-5)


def hand_alignment(features, hidden, source) -> float:
    of_features = ((features.numpy().mean(0) - source.feature_mean.numpy()) ** 2).sum()
    of_layers = sum(
        ((hidden[layer].numpy().mean(0) - source.hidden_mean[layer].numpy()) ** 2).mean() for layer in range(LAYERS)
    )
    return of_features + of_layers


def hand_token_alignment(hidden, source) -> float:
    """Tokens 2 and 3; the blank does not count, and 4 was never said in training."""
    total = 0.0
    for token, frames in ((2, [1, 2, 7]), (3, [4, 5])):
        values = hidden[:, frames].numpy()
        off_mean = values.mean(1) - source.token_mean[token].numpy()
        off_deviation = values.std(1) - np.sqrt(source.token_variance[token].numpy())
        total += (off_mean**2).mean() + (off_deviation**2).mean()
    return total / 2


def test_alignment_of_the_utterance_and_of_tokens(features, hidden, logits, source):
    np.testing.assert_allclose(
        utterance_alignment(features, hidden, source), hand_alignment(features, hidden, source), rtol=1e-5
    )
    found = token_alignment(hidden, logits, BLANK, source)
    np.testing.assert_allclose(found, hand_token_alignment(hidden, source), rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.05])  # weights of the tokens at and between their limits
def test_e_bats_weighs_tokens_by_confidence(features, hidden, logits, source, scale):
    features, hidden = scale * features, scale * hidden
    entropy = spoken_entropy(logits, BLANK, temperature=2.0).item()
    first = entropy + 2 * hand_alignment(features, hidden, source)
    weight = 2 - min(2.0, first / 5)
    expected = first + weight * hand_token_alignment(hidden, source)
    found = e_bats_objective(features, hidden, logits, BLANK, source)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_blanks_alone_count_as_uncertain(features, hidden, source):
    silent = 9.0 * torch.nn.functional.one_hot(torch.zeros(FRAMES, dtype=torch.long), CLASSES).double()
    assert spoken_entropy(silent, BLANK) == 0
    assert temporal_coherence(features, silent, BLANK) == 0
    found = e_bats_objective(features, hidden, silent, BLANK, source)
    np.testing.assert_allclose(found, 10 + 2 * hand_alignment(features, hidden, source), rtol=1e-5)


def test_a_token_of_one_frame_has_a_gradient(hidden, source):
    """Its deviation is 0, where a root has none."""
    logits = 9.0 * torch.nn.functional.one_hot(torch.tensor([0, 2] + [0] * (FRAMES - 2)), CLASSES).double()
    hidden.requires_grad_()
    token_alignment(hidden, logits, BLANK, source).backward()
    assert torch.isfinite(hidden.grad).all()
    assert hidden.grad[:, 1].abs().sum() > 0
