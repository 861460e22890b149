"""A Muon step against one written out row by row in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lact_asr.kernels.muon_step.reference import ROW_NORM_EPSILON, muon_step, row_norms
from lact_asr.kernels.newton_schulz.reference import COEFFICIENTS, newton_schulz


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthogonalise_literally(matrix: np.ndarray) -> np.ndarray:
    iterate = matrix / (np.sqrt((matrix**2).sum()) + 1e-7)
    for a, b, c in COEFFICIENTS:
        gram = iterate @ iterate.T
        iterate = a * iterate + b * gram @ iterate + c * gram @ gram @ iterate
    return iterate


def step_literally(weight, gradient, target_norms, momentum, beta, orthogonalise):
    """One matrix, one row at a time; equations of design: M ← β M + ∇, W ← W + NewtonSchulz(M), rows rescaled."""
    if momentum is not None:
        gradient = momentum = beta * momentum + gradient
    updated = weight + (orthogonalise_literally(gradient) if orthogonalise else gradient)
    for index in range(len(updated)):
        norm = np.sqrt((updated[index] ** 2).sum())
        updated[index] = updated[index] * target_norms[index, 0] / max(norm, ROW_NORM_EPSILON)
    return updated, momentum


@pytest.mark.parametrize("orthogonalise", [True, False])
@pytest.mark.parametrize("with_momentum", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (6, 3), (3, 6), (1, 5)])
def test_equals_a_literal_step(rows, columns, with_momentum, orthogonalise):
    batch, heads = 2, 3
    weights, gradient = normal(batch, heads, rows, columns), normal(batch, heads, rows, columns, seed=1)
    norms = normal(1, heads, rows, 1, seed=2).abs() + 0.5
    momentum = normal(batch, heads, rows, columns, seed=3) if with_momentum else None
    beta = torch.sigmoid(normal(batch, heads, 1, 1, seed=4)) if with_momentum else None
    updated, new_momentum = muon_step(weights, gradient, norms, momentum, beta, orthogonalise=orthogonalise)
    assert (new_momentum is not None) == with_momentum
    for row in range(batch):
        for head in range(heads):
            expected, expected_momentum = step_literally(
                weights[row, head].numpy(),
                gradient[row, head].numpy(),
                norms[0, head].numpy(),
                momentum[row, head].numpy() if with_momentum else None,
                beta[row, head, 0, 0].item() if with_momentum else None,
                orthogonalise,
            )
            # 1e-10: float64 rounding of 1e-16, amplified by the slope of Newton-Schulz (some 500) and its steps
            np.testing.assert_allclose(updated[row, head].numpy(), expected, atol=1e-10, rtol=0)
            if with_momentum:
                np.testing.assert_allclose(new_momentum[row, head].numpy(), expected_momentum, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_row_norms_are_kept_over_many_steps(dtype):
    weights = (3 * normal(2, 8, 5)).to(dtype)
    norms = row_norms(weights)
    updated = weights
    for step in range(20):
        updated, _ = muon_step(updated, normal(2, 8, 5, seed=step).to(dtype), norms)
        torch.testing.assert_close(row_norms(updated), norms, atol=0, rtol=1e-6 if dtype == torch.float32 else 1e-12)
    assert (updated - weights).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_row_norms_of_16_bits_are_in_32(dtype):
    weights = normal(8, 50).to(dtype)
    norms = row_norms(weights)
    assert norms.dtype == torch.float32
    torch.testing.assert_close(norms.double(), row_norms(weights.double()), atol=0, rtol=1e-6)
    assert muon_step(weights, normal(8, 50, seed=1).to(dtype), norms, orthogonalise=False)[0].dtype == dtype


def test_momentum_over_three_steps_is_the_weighted_sum_of_gradients():
    gradients = [normal(4, 3, seed=seed) for seed in range(3)]
    betas = [torch.full((1, 1), value, dtype=torch.float64) for value in (0.9, 0.5, 0.25)]
    weights, norms, momentum = normal(4, 3, seed=9), torch.ones(4, 1, dtype=torch.float64), torch.zeros(4, 3).double()
    for gradient, beta in zip(gradients, betas, strict=True):
        weights, momentum = muon_step(weights, gradient, norms, momentum, beta)
    expected = 0.25 * 0.5 * gradients[0] + 0.25 * gradients[1] + gradients[2]
    torch.testing.assert_close(momentum, expected, atol=1e-12, rtol=0)


def test_the_step_is_added():
    """The gradient is a direction of ascent: along it, not against it."""
    weights, gradient = normal(4, 4), normal(4, 4, seed=1)
    updated, _ = muon_step(weights, 1e-3 * gradient, row_norms(weights), orthogonalise=False)
    assert ((updated - weights) * gradient).sum() > 0
    by_muon, _ = muon_step(weights, gradient, row_norms(weights + newton_schulz(gradient)))
    torch.testing.assert_close(by_muon, weights + newton_schulz(gradient), atol=1e-12, rtol=1e-12)


def test_without_a_gradient_only_the_norms_change():
    weights = normal(4, 3)
    updated, _ = muon_step(weights, torch.zeros_like(weights), 2 * row_norms(weights))
    torch.testing.assert_close(updated, 2 * weights, atol=0, rtol=1e-12)


def test_a_vanishing_row_stays_finite():
    weights = torch.zeros(3, 3, requires_grad=True)
    updated, _ = muon_step(weights, torch.zeros(3, 3), torch.ones(3, 1))
    assert not updated.any()
    updated.sum().backward()
    assert torch.isfinite(weights.grad).all()


@pytest.mark.parametrize("orthogonalise", [True, False])
def test_first_and_second_derivatives(orthogonalise):
    weights, gradient, momentum = (normal(2, 3, 2, seed=seed).requires_grad_() for seed in range(3))
    norms = (normal(1, 3, 1, seed=3).abs() + 0.5).requires_grad_()
    beta = torch.rand(2, 1, 1, dtype=torch.float64).requires_grad_()

    def function(*inputs):
        return muon_step(*inputs, orthogonalise=orthogonalise)

    inputs = (weights, gradient, norms, momentum, beta)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)
