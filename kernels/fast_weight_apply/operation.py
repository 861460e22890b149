"""Triton's forward pass of the fast network as a differentiable PyTorch operator, known to `torch.compile` and `opcheck`."""

from __future__ import annotations

import torch
from torch import Tensor

from lact_asr.kernels.batches import fits_on_chip, flatten_matrices, flatten_weights
from lact_asr.kernels.fast_weight_apply import on_chip, reference, triton_kernels
from lact_asr.kernels.fast_weight_gradients.operation import fast_weight_gradients
from lact_asr.kernels.operators import operator
from lact_asr.kernels.recomputation import gradients_by_recomputation


def fast_weight_apply(weights: tuple[Tensor, Tensor, Tensor], queries: Tensor) -> Tensor:
    """`reference.fast_weight_apply` by Triton; stores only its inputs for the backward pass, which recomputes the rest.

    The backward pass is Triton's for heads of up to 192 features in 16 bits. For others, and where it is itself differentiated,
    it is autograd's through the reference.

    Args:
        weights: W0 [..., dh, d], W1 [..., d, dh], W2 [..., dh, d]; batch dimensions may be shorter than the queries' or 1.
        queries: q [..., L, d], float32, bfloat16 or float16.

    Returns:
        [..., L, d] in the queries' dtype.
    """
    leading = queries.shape[:-2]
    w0, w1, w2 = (weight.to(queries.dtype) for weight in flatten_weights(weights, leading))
    return _fast_weight_apply(w0, w1, w2, flatten_matrices(queries, leading)).view(queries.shape)


@operator("fast_weight_apply")
def _fast_weight_apply(w0: Tensor, w1: Tensor, w2: Tensor, queries: Tensor) -> Tensor:
    return triton_kernels.fast_weight_apply((w0, w1, w2), queries)


@_fast_weight_apply.register_fake
def _(w0: Tensor, w1: Tensor, w2: Tensor, queries: Tensor) -> Tensor:
    return queries.new_empty(queries.shape)


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


@operator("fast_weight_apply_of_queries")
def _of_queries(w0: Tensor, w1: Tensor, w2: Tensor, queries: Tensor, upstream: Tensor) -> Tensor:
    return on_chip.queries_derivative((w0, w1, w2), queries, upstream)


@_of_queries.register_fake
def _(w0: Tensor, w1: Tensor, w2: Tensor, queries: Tensor, upstream: Tensor) -> Tensor:
    return queries.new_empty(queries.shape)


def _backward(ctx, output_gradient: Tensor) -> tuple[Tensor | None, ...]:
    *weights, queries = inputs = ctx.saved_tensors  # once: gradient checkpointing hands them out a single time
    if torch.is_grad_enabled() or not fits_on_chip(queries):
        return _backward_by_reference(inputs, output_gradient)
    upstream = output_gradient.contiguous()
    of_weights, of_queries = (None, None, None), None
    if any(ctx.needs_input_grad[:3]):
        # f_W(q) is what the inner objective weighs by v: at learning rates of 1, its gradients for v = ȳ are these derivatives.
        keys, values = (tokens.unflatten(0, (-1, weights[0].shape[0])) for tokens in (queries, upstream))
        found = fast_weight_gradients(tuple(weights), keys, values, torch.ones_like(keys[..., :3]))
        of_weights = (gradient.sum(0) for gradient in found)
    if ctx.needs_input_grad[3]:
        of_queries = _of_queries(*weights, queries, upstream)
    return *of_weights, of_queries


def _backward_by_reference(inputs: tuple[Tensor, ...], output_gradient: Tensor) -> tuple[Tensor | None, ...]:
    def by_reference(w0: Tensor, w1: Tensor, w2: Tensor, queries: Tensor) -> Tensor:
        repeats = queries.shape[0] // w0.shape[0]
        return reference.fast_weight_apply(tuple(w.repeat(repeats, 1, 1) for w in (w0, w1, w2)), queries)

    return tuple(gradients_by_recomputation(by_reference, inputs, [output_gradient]))


_fast_weight_apply.register_autograd(_backward, setup_context=_setup_context)
