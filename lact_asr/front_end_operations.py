"""What the front end's layers do to their largest arrays, thousands of frames a second, with backward passes of their own.

Autograd's backward passes of the same formulas write a dozen arrays of that size; these write one or two. They are made of
differentiable operations, so that derivatives of any order exist.
"""

from __future__ import annotations

from typing import Any

import torch


def convolution_windows(hidden: torch.Tensor, kernel: int, stride: int, dilation: int) -> torch.Tensor:
    """What each output frame of a convolution sees, tap after tap: [B, T, C] -> [B, T', kernel * C]."""
    return _ConvolutionWindows.apply(hidden, kernel, stride, dilation)


def channel_norm_over_time(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, valid: torch.Tensor | None
) -> torch.Tensor:
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


class _ConvolutionWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, kernel: int, stride: int, dilation: int) -> torch.Tensor:
        ctx.shape, ctx.kernel, ctx.stride, ctx.dilation = hidden.shape, kernel, stride, dilation
        span = dilation * (kernel - 1) + 1  # frames from the first tap to the last
        return hidden.unfold(1, span, stride)[..., ::dilation].mT.flatten(2).contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        total, reach = gradient.new_zeros(ctx.shape), ctx.stride * (gradient.shape[1] - 1) + 1
        for tap, of_tap in enumerate(gradient.chunk(ctx.kernel, dim=-1)):
            start = tap * ctx.dilation
            total[:, start : start + reach : ctx.stride] += of_tap
        return total, None, None, None


class _ChannelNorm(torch.autograd.Function):
    """(y, m, r) with y = weight (x - m) r + bias and r = (v + eps) ^ -1/2; second derivatives need m and r as results.

    m and v, [B, 1, C], are mean and variance of values x [B, T, C] over time, where frames count by shares [B, T, 1] that sum
    to 1; weight and bias are [B or 1, 1, C].
    """

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shares: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with torch.autocast(values.device.type, enabled=False):
            mean = shares.mT @ values
            variance = shares.mT @ (values - mean).square_()
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(values, weight, shares, mean, scale)
        return torch.addcmul(bias - mean * scale * weight, values, scale * weight), mean, scale

    @staticmethod
    def backward(
        ctx: Any, gradient: torch.Tensor, mean_gradient: torch.Tensor, scale_gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
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
