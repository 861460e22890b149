"""Newton-Schulz against the singular value decomposition that it approximates, and its derivatives."""

from __future__ import annotations

import pytest
import torch

from lact_asr.kernels.newton_schulz.reference import COEFFICIENTS, newton_schulz

# Where the five polynomials take a singular value that is at least 0.005 of the Frobenius norm: found by evaluating them
# on a fine grid (0.97775 to 1.11149), rounded outwards.
SMALLEST_SHARE = 0.005
BAND = (0.977, 1.112)

SHAPES = [(1, 1), (5, 3), (3, 5), (8, 8), (96, 24), (24, 96), (3, 2, 40, 10), (2, 3, 10, 40)]


def random_matrices(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def with_singular_values(values: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A [rows, columns] matrix with these singular values and random singular vectors."""
    left, _ = torch.linalg.qr(random_matrices(rows, len(values), seed=1))
    right, _ = torch.linalg.qr(random_matrices(columns, len(values), seed=2))
    return left @ torch.diag(values) @ right.mT


def test_the_band_is_what_the_coefficients_give():
    values = torch.linspace(SMALLEST_SHARE, 1.0, 100_001, dtype=torch.float64)
    for a, b, c in COEFFICIENTS:
        values = a * values + b * values**3 + c * values**5
    assert BAND[0] <= values.min() <= BAND[0] + 0.002
    assert BAND[1] - 0.002 <= values.max() <= BAND[1]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_singular_values_come_near_one(shape):
    matrices = random_matrices(*shape)
    shares = torch.linalg.svdvals(matrices) / torch.linalg.matrix_norm(matrices)[..., None]
    assert shares.min() > SMALLEST_SHARE, "these matrices do not test the band"
    values = torch.linalg.svdvals(newton_schulz(matrices))
    assert BAND[0] <= values.min()
    assert values.max() <= BAND[1]


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (20, 6), (6, 20)])
def test_badly_conditioned_matrices_reach_the_band(rows, columns):
    shares = torch.tensor([1.0, 0.3, 0.1, 0.03, 0.01, 0.006], dtype=torch.float64)
    values = torch.linalg.svdvals(newton_schulz(with_singular_values(1e-3 * shares, rows, columns)))
    assert BAND[0] <= values.min()
    assert values.max() <= BAND[1]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_singular_vectors_are_kept(shape):
    """Uᵀ X V is diagonal: 1e-9 is float64 rounding, amplified by the polynomials' slope of some 500 at zero."""
    matrices = random_matrices(*shape)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    result = newton_schulz(matrices)
    inner = left.mT @ result @ right.mT
    diagonal = torch.diagonal(inner, dim1=-2, dim2=-1)
    torch.testing.assert_close(inner, torch.diag_embed(diagonal), atol=1e-9, rtol=0)
    torch.testing.assert_close(left @ inner @ right, result, atol=1e-9, rtol=0)
    # The nearest orthogonal matrix is U Vᵀ; singular values are off by at most the band's wider side.
    assert torch.linalg.matrix_norm(result - left @ right, ord=2).max() <= BAND[1] - 1


def test_five_steps_equal_the_polynomials_of_the_singular_values():
    shares = torch.tensor([0.8, 0.5, 0.33, 0.01, 0.001], dtype=torch.float64)
    shares = shares / torch.linalg.vector_norm(shares)
    expected = shares
    for a, b, c in COEFFICIENTS:
        expected = a * expected + b * expected**3 + c * expected**5
    values = torch.linalg.svdvals(newton_schulz(with_singular_values(shares, 9, 5)))
    # 1e-6: the epsilon of 1e-7 beside a norm of 1, amplified by the slope of some 500 at the smallest value
    torch.testing.assert_close(values, expected.sort(descending=True).values, atol=1e-6, rtol=1e-4)


def test_other_coefficients_are_used():
    matrices = random_matrices(4, 3)
    once = newton_schulz(matrices, coefficients=((2.0, -1.0, 0.0),))
    scaled = matrices / torch.linalg.matrix_norm(matrices)
    # 1e-6: the epsilon of 1e-7 beside the norm
    torch.testing.assert_close(once, 2 * scaled - scaled @ scaled.mT @ scaled, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(4, 4), (7, 3), (2, 3, 7)], ids=str)
def test_zero_stays_zero_with_finite_gradients(shape):
    zeros = torch.zeros(shape, requires_grad=True)
    result = newton_schulz(zeros)
    assert not result.any()
    (gradient,) = torch.autograd.grad(result.sum(), zeros, create_graph=True)
    assert torch.isfinite(gradient).all()
    gradient.sum().backward()
    assert torch.isfinite(zeros.grad).all()


def test_a_zero_matrix_changes_nothing_for_its_neighbours_in_the_batch():
    matrices = random_matrices(3, 5, 4, dtype=torch.float32)
    alone = newton_schulz(matrices)
    matrices[1] = 0
    together = newton_schulz(matrices)
    assert not together[1].any()
    torch.testing.assert_close(together[[0, 2]], alone[[0, 2]], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("rows", "columns"), [(12, 8), (8, 12), (8, 8)])
def test_rank_deficient_matrices_keep_their_null_space(rows, columns):
    rank = 3
    matrix = with_singular_values(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64), rows, columns)
    left, _, right = torch.linalg.svd(matrix)
    result = newton_schulz(matrix)
    # float64 rounding of 1e-16, amplified by some 500
    assert (result @ right[rank:].mT).abs().max() < 1e-12
    assert (left[:, rank:].mT @ result).abs().max() < 1e-12
    values = torch.linalg.svdvals(result)[:rank]
    assert BAND[0] <= values.min()
    assert values.max() <= BAND[1]


@pytest.mark.parametrize("scale", [1e-3, 0.5, -2.0, 1e4])
def test_scale_does_not_matter_but_sign_does(scale):
    matrices = random_matrices(2, 6, 4)
    expected = newton_schulz(matrices) * (1 if scale > 0 else -1)
    # the epsilon of 1e-7 is 3e-5 of the smallest norm here, and the polynomials are flat near 1
    torch.testing.assert_close(
        newton_schulz(scale * matrices), expected, atol=1e-3 if abs(scale) < 0.1 else 1e-5, rtol=0
    )


def test_a_transposed_matrix_gives_the_transposed_result():
    matrices = random_matrices(2, 9, 4)
    torch.testing.assert_close(newton_schulz(matrices.mT), newton_schulz(matrices).mT, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept_and_float32_is_close_to_float64(dtype):
    matrices = random_matrices(2, 48, 16)
    result = newton_schulz(matrices.to(dtype))
    assert result.dtype == dtype
    # 1e-5: float32 rounding (6e-8) times the slope of some 40 for these singular values, with a margin
    torch.testing.assert_close(result.double(), newton_schulz(matrices), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 2, 3)], ids=str)
def test_first_and_second_derivatives(shape):
    matrices = random_matrices(*shape).requires_grad_()
    assert torch.autograd.gradcheck(newton_schulz, matrices)
    assert torch.autograd.gradgradcheck(newton_schulz, matrices)
