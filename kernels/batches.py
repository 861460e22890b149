"""The kernels' view of a batch: matrices one behind the other, whatever dimensions come before."""

from __future__ import annotations

import torch
from torch import Tensor


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
