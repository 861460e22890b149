"""Vectors of a given length and their derivatives against PyTorch's own, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from lact_asr.vector_lengths import rms_norm, unit_length


@pytest.fixture
def vectors() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    # As heads lie in memory, neighbours along the last axis alone.
    return torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator).transpose(1, 2).requires_grad_()


@pytest.mark.parametrize("eps", [1e-12, 0.1])
def test_rms_norm_is_pytorchs(eps, vectors):
    torch.testing.assert_close(rms_norm(vectors, eps), functional.rms_norm(vectors, (5,), eps=eps), atol=1e-14, rtol=0)


def test_unit_length_is_normalize(vectors):
    torch.testing.assert_close(unit_length(vectors), functional.normalize(vectors, dim=-1), atol=1e-11, rtol=0)


@pytest.mark.parametrize("function", [unit_length, lambda vectors: rms_norm(vectors, 0.1)], ids=["unit length", "rms"])
def test_derivatives(function, vectors):
    assert gradcheck(function, vectors)
    assert gradgradcheck(function, vectors)


def test_zero_stays_zero_and_has_finite_derivatives():
    zero = torch.zeros(3, 4, requires_grad=True)
    unit = unit_length(zero)
    assert not unit.any()
    (gradient,) = torch.autograd.grad(unit.square().sum(), zero, create_graph=True)
    assert not gradient.any()
    (second,) = torch.autograd.grad(gradient.sum(), zero)
    assert second.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_shortest_vectors_of_16_bits_are_finite(dtype):
    vectors = torch.full((2, 8), torch.finfo(dtype).smallest_normal, dtype=dtype)
    assert unit_length(vectors).isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("function", [unit_length, lambda vectors: rms_norm(vectors, 1e-5)], ids=["unit length", "rms"])
def test_a_gpu_agrees_with_the_cpu(function):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: there PyTorch's fused kernels are called")
    vectors = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    on_gpu = vectors.detach().cuda().requires_grad_()
    results = [function(vectors), function(on_gpu)]
    weights = torch.linspace(-1, 1, 64)
    gradients = [
        torch.autograd.grad((result * weights.to(result.device)).sum(), tensor)[0]
        for result, tensor in zip(results, (vectors, on_gpu), strict=True)
    ]
    torch.testing.assert_close(results[1].cpu(), results[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradients[1].cpu(), gradients[0], atol=1e-6, rtol=1e-4)
