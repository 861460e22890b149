"""The kernels' view of a batch: matrices one behind the other, whatever dimensions come before, and which kernels suit them."""

from __future__ import annotations

import torch
from torch import Tensor

WIDEST_HEAD_ON_CHIP = 192  # features in 16 bits: wider heads, and float32, would spill registers


def fits_on_chip(tokens: Tensor) -> bool:
    """Whether a kernel can hold rows of these tokens, [..., d], and three accumulators of such rows, in registers."""
    return tokens.element_size() == 2 and tokens.shape[-1] <= WIDEST_HEAD_ON_CHIP


def flatten_matrices(matrices: Tensor, leading: torch.Size) -> Tensor:
    """[..., m, n] -> contiguous [k, m, n], where matrix i of a batch of shape ``leading`` is number i mod k.

    A batch dimension of 1 at the front, as of weights that all rows of a batch share, is not copied. Tensors that have the
    dimensions ``leading`` themselves become [leading.numel(), m, n].

    Args:
        matrices: leading dimensions that broadcast to ``leading``.
        leading: the batch dimensions of the other operand.
    """
    own = matrices.shape[:-2]
    while own and own[0] == 1:
        own = own[1:]
    if tuple(own) != tuple(leading[len(leading) - len(own) :]):
        own = leading
        matrices = matrices.expand(*leading, *matrices.shape[-2:])
    return matrices.reshape(torch.Size(own).numel(), *matrices.shape[-2:]).contiguous()


def flatten_weights(weights: tuple[Tensor, ...], leading: torch.Size) -> list[Tensor]:
    """`flatten_matrices` of matrices that a kernel counts together: all as few as each, or all as many as ``leading``."""
    flat = [flatten_matrices(weight, leading) for weight in weights]
    if len({len(weight) for weight in flat}) == 1:
        return flat
    return [weight.repeat(leading.numel() // len(weight), 1, 1) for weight in flat]


def sum_over_repeats(derivatives: Tensor, count: int) -> Tensor:
    """The derivative of ``count`` matrices that matrix i of a batch met as number i mod count: [k · count, m, n] -> [count, m, n]."""
    return derivatives if derivatives.shape[0] == count else derivatives.unflatten(0, (-1, count)).sum(0)
