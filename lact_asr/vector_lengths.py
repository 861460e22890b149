"""Vectors brought to a length, which the fast path does to all of its tokens, with a backward pass of its own for CPUs.

There autograd's backward pass of `functional.rms_norm` goes over the vectors eight times and takes three times as long.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

UNIT_LENGTH_EPSILON = 1e-12


def rms_norm(vectors: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) over the last axis (RMSNorm without weights, arXiv 1910.07467): length √d, shape and dtype stay.

    Args:
        vectors: [..., d], any float dtype.
        eps: see above.
    """
    dim = vectors.shape[-1]
    if _leave_to_pytorch(vectors):
        return functional.rms_norm(vectors, (dim,), eps=eps)
    return _ToLength.apply(vectors, dim**0.5, dim * eps)[0]


def unit_length(vectors: Tensor) -> Tensor:
    """x / |x| of [..., d]; zero stays zero, also in second derivatives, where `functional.normalize` gives NaN."""
    dim = vectors.shape[-1]
    if _leave_to_pytorch(vectors):
        return rms_norm(vectors, UNIT_LENGTH_EPSILON) * dim**-0.5
    return _ToLength.apply(vectors, 1.0, dim * UNIT_LENGTH_EPSILON)[0]


def _leave_to_pytorch(vectors: Tensor) -> bool:
    """A GPU has one fused kernel each way; in 16 bits the sums need PyTorch's float32."""
    return vectors.is_cuda or vectors.dtype in (torch.float16, torch.bfloat16)


class _ToLength(torch.autograd.Function):
    """(y, r) with y = r x and r = length / sqrt(x · x + ε); second derivatives need r as a result.

    As dr = -r² y · dx / length², x̄ = r (ȳ - y (y · ȳ + r r̄) / length²).
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, length: float, eps: float) -> tuple[Tensor, Tensor]:
        scale = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).square_().add_(eps).rsqrt_().mul_(length)
        scaled = vectors * scale
        ctx.save_for_backward(scaled, scale)
        ctx.length = length
        return scaled, scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, scale_gradient: Tensor) -> tuple[Tensor, None, None]:
        scaled, scale = ctx.saved_tensors
        along = (gradient * scaled).sum(-1, keepdim=True) + scale * scale_gradient
        return torch.addcmul(gradient, scaled, along, value=-(ctx.length**-2)) * scale, None, None
