"""Self-supervised losses against NumPy formulas written out in loops, at their limits, and their gradients."""

import math

import numpy as np
import pytest
import torch

from lact_asr.inference.ttt.objectives import (
    all_finite,
    class_confusion,
    finite_rows,
    frame_entropy,
    generalised_entropy,
    is_all_blank,
    negative_sampling,
    renyi_entropy,
    suta_objective,
    tent_objective,
    view_consistency,
)

BLANK = 0


def probabilities_of(logits: torch.Tensor, temperature: float = 1.0) -> np.ndarray:
    values = logits.double().numpy() / temperature
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def entropies(probabilities: np.ndarray) -> list[float]:
    return [-sum(p * math.log(p) for p in frame if p > 0) for frame in probabilities]


def confusion(probabilities: np.ndarray) -> float:
    """Minimum class confusion by explicit loops over pairs of classes and frames; certain frames weigh more."""
    frames, classes = probabilities.shape
    certainty = [1 + math.exp(-entropy) for entropy in entropies(probabilities)]
    weights = [frames * value / sum(certainty) for value in certainty]
    total = 0.0
    for i in range(classes):
        row = [
            sum(weights[t] * probabilities[t, i] * probabilities[t, j] for t in range(frames)) for j in range(classes)
        ]
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
    assert torch.autograd.gradcheck(lambda logits: renyi_entropy(logits, 1.5), logits)


def test_no_gradient_flows_through_the_weights_of_class_confusion():
    """As if they were constants: the derivative of the formula with the weights held."""
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weights = 1 + torch.exp(-frame_entropy(logits.detach()))

    def held(logits: torch.Tensor) -> torch.Tensor:
        p = logits.softmax(-1)
        correlation = torch.einsum("t,ti,tj->ij", weights / weights.mean(), p, p)
        return 1 - (correlation.diagonal() / correlation.sum(1)).mean()

    assert torch.autograd.gradcheck(held, logits)
    torch.testing.assert_close(class_confusion(logits), held(logits))
    torch.testing.assert_close(
        *(torch.autograd.grad(function(logits), logits)[0] for function in (class_confusion, held))
    )


@pytest.mark.parametrize("alpha", [0.5, 1.5, 2.0])
def test_renyi_entropy_follows_its_formula(alpha):
    logits = 3 * torch.randn(6, 5, dtype=torch.float64)
    expected = [math.log(sum(p**alpha for p in frame)) / (1 - alpha) for frame in probabilities_of(logits)]
    np.testing.assert_allclose(renyi_entropy(logits, alpha), expected, rtol=1e-10)
    torch.testing.assert_close(renyi_entropy(logits, 1 + 1e-7), frame_entropy(logits), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blanks", [0, 4, 9])
def test_sgem_sums_renyi_entropy_and_negative_sampling(blanks):
    logits = peaked_logits(9, 6, blanks)
    softened, sharp = probabilities_of(logits, 2.5), probabilities_of(logits)
    sampling = [
        -math.log(1 - sum(soft for soft, p in zip(*frame, strict=True) if p < 0.4 / 6))
        for frame in zip(softened, sharp, strict=True)
    ]
    assert np.mean(sampling) > 0.01
    np.testing.assert_allclose(negative_sampling(logits), np.mean(sampling), rtol=1e-5)
    renyi = [math.log(sum(p**1.5 for p in frame)) / -0.5 for frame in softened[blanks:]]
    expected = np.mean(sampling) + (np.mean(renyi) if renyi else 0.0)
    np.testing.assert_allclose(generalised_entropy(logits, BLANK), expected, rtol=1e-5)


def test_tent_is_the_mean_entropy_of_all_frames():
    logits = peaked_logits(9, 6, 4)
    np.testing.assert_allclose(tent_objective(logits), np.mean(entropies(probabilities_of(logits))), rtol=1e-5)


def test_views_are_drawn_towards_each_other_and_each_target_is_fixed():
    first, second = (torch.randn(7, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    p, q = probabilities_of(first.detach()), probabilities_of(second.detach())
    divergence = sum(p * np.log(p / q) + q * np.log(q / p) for p, q in zip(p.ravel(), q.ravel(), strict=True))
    loss = view_consistency(first, second)
    np.testing.assert_allclose(loss.item(), divergence / 2 / 7, rtol=1e-5)
    loss.backward()
    # The gradient of KL(target || softmax(z)) is softmax(z) − target.
    np.testing.assert_allclose(first.grad, (p - q) / 2 / 7, atol=1e-6)
    np.testing.assert_allclose(second.grad, (q - p) / 2 / 7, atol=1e-6)
    assert view_consistency(first, first).abs() < 1e-6


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 300.0, 3000.0])
@pytest.mark.parametrize("objective", [suta_objective, generalised_entropy, lambda logits, _: tent_objective(logits)])
def test_gradients_are_finite_at_every_sharpness(scale, objective):
    logits = (scale * torch.randn(20, 32)).requires_grad_()
    objective(logits, BLANK).backward()
    assert torch.isfinite(logits.grad).all()


def test_half_precision_is_computed_in_float32():
    logits = torch.randn(10, 6).bfloat16()
    assert suta_objective(logits, BLANK).dtype == torch.float32
    torch.testing.assert_close(suta_objective(logits, BLANK), suta_objective(logits.float(), BLANK))


def test_silence_and_finiteness():
    logits = peaked_logits(6, 4, 6)
    assert is_all_blank(logits, BLANK)
    assert not is_all_blank(logits, 1)
    logits[2, 3] = 50.0
    assert not is_all_blank(logits, BLANK)
    assert all_finite(logits, logits[:0])
    assert not all_finite(logits, torch.tensor([1.0, math.nan]))
    assert not all_finite(torch.tensor([math.inf]))


def test_finite_rows():
    values = torch.tensor([[1.0, -2.0], [math.inf, -math.inf], [math.nan, 0.0], [3.0, 4.0]])
    assert finite_rows([values[:, :, None], torch.zeros(4, 3)], 4) == [True, False, False, True]
    assert finite_rows([torch.ones(4, 3), values], 4) == [True, False, False, True]
    assert finite_rows([values], 1) == [False]
    assert finite_rows([torch.full((2, 3), 60_000.0, dtype=torch.float16)], 2) == [True, True]
