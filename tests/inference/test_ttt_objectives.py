"""Self-supervised losses against NumPy formulas written out in loops, at their limits, and their gradients."""

import math

import numpy as np
import pytest
import torch

from lact_asr.inference.ttt_objectives import all_finite, class_confusion, frame_entropy, is_silent, suta_objective

BLANK = 0


def probabilities_of(logits: torch.Tensor, temperature: float = 1.0) -> np.ndarray:
    values = logits.double().numpy() / temperature
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def entropies(probabilities: np.ndarray) -> list[float]:
    return [-sum(p * math.log(p) for p in frame if p > 0) for frame in probabilities]


def confusion(probabilities: np.ndarray) -> float:
    """Minimum class confusion by explicit loops over pairs of classes and frames."""
    frames, classes = probabilities.shape
    total = 0.0
    for i in range(classes):
        row = [sum(probabilities[t, i] * probabilities[t, j] for t in range(frames)) for j in range(classes)]
        total += sum(entry for j, entry in enumerate(row) if j != i) / sum(row)
    return total / classes


def peaked_logits(frames: int, classes: int, blanks: int) -> torch.Tensor:
    """Random logits whose first ``blanks`` frames say blank and whose others do not."""
    logits = torch.randn(frames, classes, dtype=torch.float64)
    logits[:, BLANK] = -3.0
    logits[:blanks, BLANK] = 6.0
    return logits


@pytest.mark.parametrize(("frames", "classes", "scale"), [(1, 2, 1.0), (7, 5, 0.3), (12, 32, 8.0)])
def test_entropy_and_confusion_follow_their_formulas(frames, classes, scale):
    logits = scale * torch.randn(frames, classes, dtype=torch.float64)
    expected = probabilities_of(logits)
    np.testing.assert_allclose(frame_entropy(logits), entropies(expected), rtol=1e-10)
    np.testing.assert_allclose(class_confusion(logits), confusion(expected), rtol=1e-10)


@pytest.mark.parametrize("blanks", [0, 3, 8])
def test_suta_mixes_entropy_of_spoken_frames_and_confusion_of_all(blanks):
    logits = peaked_logits(9, 6, blanks)
    softened = probabilities_of(logits, temperature=2.5)
    expected = 0.3 * np.mean(entropies(softened)[blanks:]) + 0.7 * confusion(softened)
    np.testing.assert_allclose(suta_objective(logits, BLANK), expected, rtol=1e-5)  # it works in float32


def test_suta_of_blanks_alone_has_no_entropy_term():
    logits = peaked_logits(9, 6, 9).requires_grad_()
    loss = suta_objective(logits, BLANK)
    np.testing.assert_allclose(loss.item(), 0.7 * confusion(probabilities_of(logits.detach(), 2.5)), rtol=1e-5)
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().max() > 0


def test_the_blank_may_be_any_class():
    logits = peaked_logits(9, 6, 4)
    moved = logits[:, [1, 2, 3, 4, 5, 0]]
    torch.testing.assert_close(suta_objective(moved, 5), suta_objective(logits, BLANK))
    assert suta_objective(moved, 0) != suta_objective(logits, BLANK)


def test_uniform_output():
    """H = ln V; each class correlates equally with every class, so (V − 1) / V of each row is off the diagonal."""
    logits = torch.full((5, 8), 3.0)
    torch.testing.assert_close(frame_entropy(logits), torch.full((5,), math.log(8)))
    torch.testing.assert_close(class_confusion(logits), torch.tensor(7 / 8))


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_one_hot_output(scale):
    """Certain and never confused: both are 0, also where most classes' probabilities underflow in every frame."""
    logits = scale * torch.eye(8)[[0, 3, 3, 5]]
    logits.requires_grad_()
    torch.testing.assert_close(frame_entropy(logits), torch.zeros(4))
    torch.testing.assert_close(class_confusion(logits), torch.tensor(0.0))
    loss = suta_objective(logits, BLANK)
    loss.backward()
    assert torch.isfinite(logits.grad).all()


def test_confusion_tells_equal_frames_from_frames_that_differ():
    """Frames that lean to one class and also to another confuse the two; entropy cannot tell the cases apart."""
    same = torch.tensor([[4.0, 0.0, 2.0]] * 4)
    differing = torch.tensor([[4.0, 0.0, 2.0], [2.0, 4.0, 0.0], [0.0, 2.0, 4.0], [4.0, 0.0, 2.0]])
    torch.testing.assert_close(frame_entropy(same), frame_entropy(differing))
    assert class_confusion(same) > class_confusion(differing) + 0.1


def test_gradients_are_the_derivatives():
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(frame_entropy, logits)
    assert torch.autograd.gradcheck(class_confusion, logits)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 300.0, 3000.0])
def test_gradients_are_finite_at_every_sharpness(scale):
    logits = (scale * torch.randn(20, 32)).requires_grad_()
    suta_objective(logits, BLANK).backward()
    assert torch.isfinite(logits.grad).all()


def test_half_precision_is_computed_in_float32():
    logits = torch.randn(10, 6).bfloat16()
    assert suta_objective(logits, BLANK).dtype == torch.float32
    torch.testing.assert_close(suta_objective(logits, BLANK), suta_objective(logits.float(), BLANK))


def test_silence_and_finiteness():
    logits = peaked_logits(6, 4, 6)
    assert is_silent(logits, BLANK)
    assert not is_silent(logits, 1)
    logits[2, 3] = 50.0
    assert not is_silent(logits, BLANK)
    assert all_finite(logits, logits[:0])
    assert not all_finite(logits, torch.tensor([1.0, math.nan]))
    assert not all_finite(torch.tensor([math.inf]))
