"""Newton-Schulz orthogonalisation in plain PyTorch: the twin that every fused version is tested against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Five steps whose coefficients were chosen together for fast convergence of small singular values
# (design of the Polar Express, arXiv 2505.16932, with the safety margins used by LaCT, arXiv 2505.23884).
COEFFICIENTS: tuple[tuple[float, float, float], ...] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
NORM_EPSILON = 1e-7  # added to the Frobenius norm, so that a zero matrix stays zero


def steps(iterate: Tensor, coefficients: tuple[tuple[float, float, float], ...]) -> Tensor:
    """For each (a, b, c): A = X Xᵀ, X ← a X + (b A + c A²) X, of matrices [N, m, n]."""
    for a, b, c in coefficients:
        gram = iterate @ iterate.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        iterate = torch.baddbmm(iterate, polynomial, iterate, beta=a)
    return iterate


def newton_schulz(
    matrices: Tensor, coefficients: tuple[tuple[float, float, float], ...] = COEFFICIENTS, steps: Callable = steps
) -> Tensor:
    """Replace every singular value of each matrix by a value near 1, keeping its singular vectors.

    X₀ = G / ‖G‖_F, then `steps` on the smaller side. This is the orthogonalisation of Muon (Jordan et al. 2024).
    Differentiable twice by autograd, at zero too.

    Args:
        matrices: [..., m, n], float32 or float64; any m and n.
        coefficients: (a, b, c) for each step.
        steps: what takes them, for faster versions.

    Returns:
        [..., m, n] in the input's dtype. Zero matrices stay zero.
    """
    transposed = matrices.shape[-2] > matrices.shape[-1]
    iterate = (matrices.mT if transposed else matrices).reshape(-1, *sorted(matrices.shape[-2:]))
    iterate = steps(iterate / (_frobenius_norm(iterate) + NORM_EPSILON), coefficients)
    return (iterate.mT if transposed else iterate).reshape(matrices.shape)


def _frobenius_norm(matrices: Tensor) -> Tensor:
    """[N, m, n] -> [N, 1, 1]. Second derivatives of PyTorch's own are NaN at zero, which a row's padding comes to."""
    squares = matrices.square().sum((-2, -1), keepdim=True)
    positive = squares > 0
    return squares.where(positive, 1.0).sqrt().where(positive, 0.0)
