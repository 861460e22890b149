"""A convolution on frames in rows, as matrix products that read the frames where they lie, with a backward pass of its own.

The front end's arrays are the model's largest, thousands of frames a second: `Conv1d` would transpose them before and after, and
an array of all windows would be several times as large. The backward pass is made of differentiable operations, so that
derivatives of any order exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

Frames = TypeVar("Frames", int, Tensor)


def output_frames(frames: Frames, kernel: int, stride: int, dilation: int) -> Frames:
    """How many frames (int, or int64 of any shape) a convolution makes of so many; 0 or less where the taps do not fit."""
    return (frames - dilation * (kernel - 1) - 1) // stride + 1


def convolution(hidden: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """`Conv1d` without bias on frames in rows, as products that read the frames where they lie.

    Neighbouring taps that fit between one output frame and the next lie side by side in memory: each such group is one
    product. (A kernel of 3 with stride 2 is two products, of 2 taps and of 1.) No array of all windows is written, but for
    waveforms (C = 1). In 16 bits sums are rounded once for each group of taps.

    Args:
        hidden: [B, T, C], T at least dilation * (kernel - 1) + 1.
        weight: [out, C, kernel], or a copy of it for each row [B or 1, out, C, kernel].
        stride, dilation: as in `Conv1d`.

    Returns:
        [B, T', out]; in autocast's dtype where that is on, as from `Conv1d`.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if weight.ndim == 4:
        weight = weight.expand(hidden.shape[0], -1, -1, -1)
    kernel = weight.shape[-1]
    taps = weight.movedim(-1, -3).mT  # [..., kernel, C, out]
    if hidden.shape[-1] == 1:  # waveforms: their windows are small, and products of few columns are slow
        windows = hidden[..., 0].unfold(1, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
        hidden, taps, stride, dilation = windows, taps.transpose(-3, -2), 1, 1
    return _convolution(hidden.contiguous(), taps.contiguous(), stride, dilation)


# Operators, so that a compiler sees one node in place of views whose layout it would compile anew for many a length.
@torch.library.custom_op("lact_asr::convolution", mutates_args=())
def _convolution(hidden: Tensor, taps: Tensor, stride: int, dilation: int) -> Tensor:
    """`convolution` of frames [B, T, C] by taps [kernel, C, out], or [B, kernel, C, out]."""
    frames, product = output_frames(hidden.shape[1], taps.shape[-3], stride, dilation), None
    for first, count, matrix in _groups_of_taps(taps, stride, dilation):
        seen = _side_by_side(hidden, first * dilation, count, stride, frames)
        matrix = matrix.expand(hidden.shape[0], -1, -1)
        product = torch.bmm(seen, matrix) if product is None else product.baddbmm_(seen, matrix)
    return product


@_convolution.register_fake
def _(hidden: Tensor, taps: Tensor, stride: int, dilation: int) -> Tensor:
    frames = output_frames(hidden.shape[1], taps.shape[-3], stride, dilation)
    return hidden.new_empty(hidden.shape[0], frames, taps.shape[-1])


def _gradient_of_hidden(gradient: Tensor, hidden: Tensor, taps: Tensor, stride: int, dilation: int) -> Tensor:
    total = torch.zeros_like(hidden)
    for first, count, matrix in _groups_of_taps(taps, stride, dilation):
        seen = _side_by_side(total, first * dilation, count, stride, gradient.shape[1])
        seen.baddbmm_(gradient, matrix.mT.expand(hidden.shape[0], -1, -1))
    return total


def _gradient_of_taps(gradient: Tensor, hidden: Tensor, taps: Tensor, stride: int, dilation: int) -> Tensor:
    of_groups = []
    for first, count, _ in _groups_of_taps(taps, stride, dilation):
        seen = _side_by_side(hidden, first * dilation, count, stride, gradient.shape[1])
        of_group = seen.mT @ gradient  # in the other order ten times slower for the ten columns of the first layer
        of_groups.append(of_group if taps.ndim == 4 else of_group.sum(0))
    return torch.cat(of_groups, dim=-2).view_as(taps)


_of_hidden = torch.library.custom_op("lact_asr::convolution_of_hidden", _gradient_of_hidden, mutates_args=())
_of_taps = torch.library.custom_op("lact_asr::convolution_of_taps", _gradient_of_taps, mutates_args=())
_of_hidden.register_fake(lambda gradient, hidden, taps, stride, dilation: torch.empty_like(hidden))
_of_taps.register_fake(lambda gradient, hidden, taps, stride, dilation: torch.empty_like(taps))


def _keep_inputs(ctx: Any, inputs: tuple, output: Tensor) -> None:
    hidden, taps, *ctx.steps = inputs
    ctx.save_for_backward(hidden, taps)


def _convolution_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    inputs = gradient, *ctx.saved_tensors, *ctx.steps
    # Operators have no derivative of their own; what they run has.
    of_hidden, of_taps = (_gradient_of_hidden, _gradient_of_taps) if torch.is_grad_enabled() else (_of_hidden, _of_taps)
    with torch.autocast(gradient.device.type, enabled=False):  # the forward pass's precision, not the caller's
        return (
            of_hidden(*inputs) if ctx.needs_input_grad[0] else None,
            of_taps(*inputs) if ctx.needs_input_grad[1] else None,
            None,
            None,
        )


_convolution.register_autograd(_convolution_backward, setup_context=_keep_inputs)


def _groups_of_taps(taps: Tensor, stride: int, dilation: int) -> Iterator[tuple[int, int, Tensor]]:
    """Neighbours that fit into a stride: the first of a group, their number, their matrix [taps * C, out] or [B, taps * C, out]."""
    size = stride if dilation == 1 else 1
    for number, group in enumerate(taps.split(size, dim=-3)):
        yield number * size, group.shape[-3], group.flatten(-3, -2)


def _side_by_side(hidden: Tensor, start: int, count: int, stride: int, frames: int) -> Tensor:
    """A view [B, frames, count * C] of contiguous [B, T, C]: ``count`` neighbours from ``start`` on, then a ``stride`` further on."""
    neighbours = hidden[:, start:].unfold(1, count, stride)[:, :frames].mT
    return neighbours.view(hidden.shape[0], frames, count * hidden.shape[-1])
