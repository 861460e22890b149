"""Normalisation of each channel over time, which padding leaves as it is, with a backward pass of its own.

Autograd's backward pass of the same formula writes a dozen arrays of the front end's size, this one two. It is made of
differentiable operations, so that derivatives of any order exist.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def channel_norm_over_time(hidden: Tensor, weight: Tensor, bias: Tensor, eps: float, valid: Tensor | None) -> Tensor:
    """`GroupNorm` with one group per channel whose statistics see only each row's valid frames.

    y = weight (x - m) / sqrt(v + eps) + bias, with m and v (biased, as in `GroupNorm`) the mean and the variance over
    the valid frames of one row and channel, in float32 or, for float64, in that.

    Args:
        hidden: [B, T, C], finite.
        weight: [C] or [B, C].
        bias: as ``weight``.
        eps: see above.
        valid: [B, T] bool; None for all.

    Returns:
        [B, T, C] in the input's dtype; frames that are not valid are finite but mean nothing.
    """
    values = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if valid is None:
        valid = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    shares = valid.to(values.dtype)[..., None]
    shares = shares / shares.sum(1, keepdim=True).clamp(min=1)
    weight, bias = (parameter.to(values.dtype).view(-1, 1, hidden.shape[-1]) for parameter in (weight, bias))
    normalised, _, _ = _ChannelNorm.apply(values, weight, bias, shares, eps)
    return normalised.to(hidden.dtype)


class _ChannelNorm(torch.autograd.Function):
    """(y, m, r) with y = weight (x - m) r + bias and r = (v + eps) ^ -1/2; second derivatives need m and r as results.

    m and v, [B, 1, C], are mean and variance of values x [B, T, C] over time, where frames count by shares [B, T, 1] that sum
    to 1; weight and bias are [B or 1, 1, C].
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, shares: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(values.device.type, enabled=False):
            mean = shares.mT @ values
            variance = shares.mT @ (values - mean).square_()
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(values, weight, shares, mean, scale)
        return torch.addcmul(bias - mean * scale * weight, values, scale * weight), mean, scale

    @staticmethod
    def backward(
        ctx: Any, gradient: Tensor, mean_gradient: Tensor, scale_gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        values, weight, shares, mean, scale = ctx.saved_tensors
        total = gradient.sum(1, keepdim=True)
        along = (gradient * values).sum(1, keepdim=True) - mean * total  # Σ ȳ (x - m)
        mean_gradient = mean_gradient - scale * weight * total
        # ∂v/∂x = 2 share (x - m), as what x does to m leaves v as it is; ∂r/∂v = -r³ / 2
        slope = -(scale**3) * (scale_gradient + weight * along)
        of_statistics = torch.addcmul(mean_gradient - slope * mean, values, slope).mul_(shares)
        of_values = of_statistics.addcmul_(gradient, scale * weight)
        of_weight, of_bias = (scale * along).sum_to_size(weight.shape), total.sum_to_size(weight.shape)
        return of_values, of_weight, of_bias, None, None
