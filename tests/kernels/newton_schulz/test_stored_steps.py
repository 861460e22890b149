"""Newton-Schulz with a backward pass of its own against autograd through the reference."""

from __future__ import annotations

import pytest
import torch

from lact_asr.kernels.newton_schulz import reference
from lact_asr.kernels.newton_schulz.stored_steps import newton_schulz

SHAPES = [(5, 3), (3, 5), (2, 3, 8, 8), (24, 96)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_and_gradients_are_those_of_the_reference(shape, relative_error):
    matrices, outer = normal(*shape).requires_grad_(), normal(*shape, seed=1)
    results = newton_schulz(matrices), reference.newton_schulz(matrices)
    torch.testing.assert_close(*results, atol=0, rtol=0)
    found, expected = (torch.autograd.grad(result, matrices, outer)[0] for result in results)
    # 1e-9: rounding of 1e-16, amplified by five steps with slopes up to some 500 in all, forth and back
    assert relative_error(found, expected) < 1e-9


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_gradients_are_as_close_as_those_of_the_reference(shape, relative_error):
    matrices, outer = normal(*shape), normal(*shape, seed=1)

    def gradient(function, dtype: torch.dtype) -> torch.Tensor:
        leaf = matrices.to(dtype).requires_grad_()
        return torch.autograd.grad(function(leaf), leaf, outer.to(dtype))[0]

    expected = gradient(reference.newton_schulz, torch.float64)
    own, plain = (gradient(function, torch.float32) for function in (newton_schulz, reference.newton_schulz))
    assert relative_error(own, expected) < 2 * relative_error(plain, expected) + 1e-6


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 2, 3)], ids=str)
def test_first_and_second_derivatives(shape):
    matrices = normal(*shape).requires_grad_()
    assert torch.autograd.gradcheck(newton_schulz, matrices)
    assert torch.autograd.gradgradcheck(newton_schulz, matrices)


def test_zero_stays_zero_with_finite_gradients():
    zeros = torch.zeros(2, 4, 3, requires_grad=True)
    result = newton_schulz(zeros)
    assert not result.any()
    (gradient,) = torch.autograd.grad(result.sum(), zeros, create_graph=True)
    assert torch.isfinite(gradient).all()
    gradient.sum().backward()
    assert torch.isfinite(zeros.grad).all()


def test_a_backward_pass_under_autocast_is_the_same():
    """Training through a step of test-time training differentiates inside of autocast."""
    matrices, outer = normal(4, 24, 96).float().requires_grad_(), normal(4, 24, 96, seed=1).float()
    (expected,) = torch.autograd.grad(newton_schulz(matrices), matrices, outer)
    result = newton_schulz(matrices)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(result, matrices, outer)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
