"""Triton's forward pass of the fast network as a differentiable PyTorch operator, known to `torch.compile` and `opcheck`."""

from __future__ import annotations

import torch
from torch import Tensor

from lact_asr.kernels.batches import flatten_matrices
from lact_asr.kernels.fast_weight_apply import reference, triton_kernels
from lact_asr.kernels.recomputation import gradients_by_recomputation


def fast_weight_apply(weights: tuple[Tensor, Tensor, Tensor], queries: Tensor) -> Tensor:
    """`reference.fast_weight_apply` by Triton; its backward recomputes by the reference and stores only the inputs.

    Args:
        weights: W0 [..., dh, d], W1 [..., d, dh], W2 [..., dh, d]; batch dimensions may be shorter than the queries' or 1.
        queries: q [..., L, d], float32, bfloat16 or float16.

    Returns:
        [..., L, d] in the queries' dtype.
    """
    leading = queries.shape[:-2]
    w0, w1, w2 = (flatten_matrices(weight, leading).to(queries.dtype) for weight in weights)
    return _fast_weight_apply(w0, w1, w2, flatten_matrices(queries, leading)).view(queries.shape)


@torch.library.custom_op("lact_asr::fast_weight_apply", mutates_args=())
def _fast_weight_apply(w0: Tensor, w1: Tensor, w2: Tensor, queries: Tensor) -> Tensor:
    return triton_kernels.fast_weight_apply((w0, w1, w2), queries)


@_fast_weight_apply.register_fake
def _(w0: Tensor, w1: Tensor, w2: Tensor, queries: Tensor) -> Tensor:
    return queries.new_empty(queries.shape)


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, output_gradient: Tensor) -> tuple[Tensor | None, ...]:
    def by_reference(w0: Tensor, w1: Tensor, w2: Tensor, queries: Tensor) -> Tensor:
        repeats = queries.shape[0] // w0.shape[0]
        return reference.fast_weight_apply(tuple(w.repeat(repeats, 1, 1) for w in (w0, w1, w2)), queries)

    return tuple(gradients_by_recomputation(by_reference, ctx.saved_tensors, [output_gradient]))


_fast_weight_apply.register_autograd(_backward, setup_context=_setup_context)
