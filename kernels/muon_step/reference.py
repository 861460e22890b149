"""One Muon step on fast weights in plain PyTorch: the twin that every fused version is tested against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lact_asr.kernels.newton_schulz.reference import COEFFICIENTS, newton_schulz

ROW_NORM_EPSILON = 1e-5  # keeps the rescaling of a vanishing row finite


def row_norms(weights: Tensor) -> Tensor:
    """Euclidean norm of each row: [..., m, n] -> [..., m, 1], of 16-bit weights in float32."""
    dtype = torch.promote_types(weights.dtype, torch.float32)
    return torch.linalg.vector_norm(weights, dim=-1, keepdim=True, dtype=dtype)


def muon_step(
    weights: Tensor,
    gradient: Tensor,
    target_row_norms: Tensor,
    momentum: Tensor | None = None,
    beta: Tensor | None = None,
    coefficients: tuple[tuple[float, float, float], ...] = COEFFICIENTS,
    orthogonalise: bool = True,
    newton_schulz: Callable = newton_schulz,
) -> tuple[Tensor, Tensor | None]:
    """M ← β M + ∇; U = NewtonSchulz(M); W ← W + U; each row of W is rescaled to its target norm.

    Muon with LaCT's weight normalisation (arXiv 2505.23884, section 3). The gradient is a direction of ascent of
    ⟨f_W(k), v⟩, so it is added.

    Args:
        weights: W [..., m, n].
        gradient: ∇ [..., m, n].
        target_row_norms: [..., m, 1], the norms that the rows of W are brought back to.
        momentum: M before the step, [..., m, n], or None to use the gradient alone.
        beta: β in (0, 1), broadcastable to [..., 1, 1]; needed with ``momentum``.
        coefficients: of Newton-Schulz.
        orthogonalise: False adds M itself (plain gradient ascent).
        newton_schulz: the plain one, or a faster one.

    Returns:
        (W after the step, M after the step or None where no momentum was given).
    """
    if momentum is not None:
        gradient = momentum = beta * momentum + gradient
    update = newton_schulz(gradient, coefficients) if orthogonalise else gradient
    updated = weights + update
    return rescale_rows(updated, target_row_norms), momentum


def rescale_rows(weights: Tensor, target_row_norms: Tensor) -> Tensor:
    """Each row of [..., m, n] scaled to its norm in [..., m, 1]."""
    scales = target_row_norms / row_norms(weights).clamp(min=ROW_NORM_EPSILON)
    return (weights * scales).to(weights.dtype)
