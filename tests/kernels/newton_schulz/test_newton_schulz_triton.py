"""Triton's Newton-Schulz against the reference in float64, forward and backward; in the interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from lact_asr.kernels.newton_schulz.reference import newton_schulz as reference

SHAPES = [
    (2, 24, 40),
    (2, 40, 24),
    (1, 13, 7),
    (2, 33, 33),
    (1, 1, 5),
    (1, 5, 1),
    (1, 16, 16),
    (2, 2, 17, 50),
    (1, 70, 72),
]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def newton_schulz(device):
    from lact_asr.kernels.newton_schulz.operation import newton_schulz

    return lambda matrices: newton_schulz(matrices.to(device)).cpu()


@pytest.mark.parametrize("shape", SHAPES)
def test_float32(newton_schulz, shape, relative_error):
    matrices = normal(*shape)
    # 2e-4: the Gram form in float32; square matrices have the smallest singular values.
    assert relative_error(newton_schulz(matrices), reference(matrices.double())) < 2e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_float16(newton_schulz, shape, relative_error):
    matrices = normal(*shape).half()
    found = newton_schulz(matrices)
    assert found.dtype == torch.float16
    assert relative_error(found, reference(matrices.double())) < 0.03


def test_launch_by_launch_equals_one_program(newton_schulz, monkeypatch, relative_error):
    from lact_asr.kernels.newton_schulz import launches

    matrices = normal(2, 24, 40).half()
    at_once = newton_schulz(matrices)
    monkeypatch.setattr(launches, "ONE_PROGRAM_MAX", 8)
    assert relative_error(newton_schulz(matrices), at_once) < 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_zero_and_empty(newton_schulz, dtype):
    matrices = torch.stack([torch.zeros(17, 20), normal(17, 20)]).to(dtype)
    found = newton_schulz(matrices)
    assert found[0].abs().max() == 0
    assert found[1].isfinite().all()
    assert newton_schulz(torch.zeros(0, 17, 20, dtype=dtype)).shape == (0, 17, 20)


@pytest.mark.parametrize("rank", [1, 3])
def test_rank_deficient(newton_schulz, rank, relative_error):
    matrix = (normal(20, rank) @ normal(rank, 36, seed=1))[None]
    assert relative_error(newton_schulz(matrix), reference(matrix.double())) < 2e-4
    half = matrix.half()
    # Q is some 500 on the null space, and its rounding meets the few large singular values: bfloat16 is much worse.
    brain = matrix.bfloat16()
    plain = relative_error(reference(brain), reference(brain.double()))
    assert relative_error(newton_schulz(half), reference(half.double())) < min(0.3, 0.7 * plain)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, scale) for scale in (1e-5, 1e-3, 1e3, 1e12)] + [(torch.float16, scale) for scale in (1e-4, 1e4)],
)
def test_scale_does_not_matter(newton_schulz, dtype, scale, relative_error):
    matrices = (normal(2, 20, 36) * scale).to(dtype)
    tolerance = 2e-4 if dtype == torch.float32 else 0.03
    assert relative_error(newton_schulz(matrices), reference(matrices.double())) < tolerance


def test_backward(newton_schulz, relative_error):
    for shape in [(2, 20, 36), (2, 36, 20)]:
        matrices, outer = normal(*shape), normal(*shape, seed=1)
        exact = matrices.double().requires_grad_()
        (expected,) = torch.autograd.grad(reference(exact), exact, outer.double())
        for dtype, tolerance in [(torch.float32, 1e-3), (torch.float16, 3e-2)]:
            given = matrices.to(dtype).requires_grad_()
            (found,) = torch.autograd.grad(newton_schulz(given), given, outer.to(dtype))
            assert found.dtype == dtype
            assert relative_error(found, expected) < tolerance


def test_second_derivative_is_the_references(newton_schulz, relative_error):
    def second(function, matrices: torch.Tensor) -> torch.Tensor:
        matrices = matrices.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(matrices).sin().sum(), matrices, create_graph=True)
        (found,) = torch.autograd.grad(first.square().sum(), matrices)
        return found

    matrices = normal(1, 6, 9)
    assert relative_error(second(newton_schulz, matrices), second(reference, matrices.double())) < 1e-3
    exact = normal(1, 3, 4).double().requires_grad_()
    assert torch.autograd.gradgradcheck(reference, exact)


def test_is_a_well_formed_operator(device):
    from lact_asr.kernels.newton_schulz.operation import _newton_schulz, flat
    from lact_asr.kernels.newton_schulz.reference import COEFFICIENTS

    torch.library.opcheck(_newton_schulz, (normal(1, 5, 8).to(device).requires_grad_(), flat(COEFFICIENTS)))


@pytest.mark.gpu
@pytest.mark.parametrize(("m", "n"), [(192, 1536), (768, 1536), (200, 300)])
def test_bfloat16_is_no_worse_than_plain_bfloat16(needs_gpu, newton_schulz, m, n, relative_error):
    tokens = normal(2, 800, m), normal(2, 800, n, seed=1)
    matrices = ((tokens[0] + 0.5).mT @ (tokens[1] + 0.2)).bfloat16()
    expected = reference(matrices.double())
    plain = relative_error(reference(matrices.to(needs_gpu)), expected)
    assert relative_error(newton_schulz(matrices), expected) < 1.1 * plain


@pytest.mark.gpu
@pytest.mark.parametrize(("m", "n"), [(192, 1536), (768, 1536)])
def test_bfloat16_backward_is_no_worse_than_plain_bfloat16(needs_gpu, newton_schulz, m, n, relative_error):
    matrices, outer = normal(2, m, n).bfloat16(), normal(2, m, n, seed=1).bfloat16()

    def derivative(function, dtype: torch.dtype, where: str) -> torch.Tensor:
        leaf = matrices.to(where, dtype).requires_grad_()
        found = function(leaf)
        return torch.autograd.grad(found, leaf, outer.to(found.device, dtype))[0]

    exact = derivative(reference, torch.float64, needs_gpu)
    plain = relative_error(derivative(reference, torch.bfloat16, needs_gpu), exact)
    assert relative_error(derivative(newton_schulz, torch.bfloat16, "cpu"), exact) < 1.1 * plain
