"""Triton's inner gradients as a differentiable PyTorch operator, known to `torch.compile` and `opcheck`."""

from __future__ import annotations

import torch
from torch import Tensor

from lact_asr.kernels.batches import fits_on_chip, flatten_matrices, flatten_weights, sum_over_repeats
from lact_asr.kernels.fast_weight_gradients import on_chip_backward, reference, triton_kernels
from lact_asr.kernels.operators import operator
from lact_asr.kernels.recomputation import gradients_by_recomputation


def fast_weight_gradients(
    weights: tuple[Tensor, Tensor, Tensor], keys: Tensor, values: Tensor, learning_rates: Tensor,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`reference.fast_weight_gradients` by Triton; stores only its inputs for the backward pass, which recomputes the rest.

    The backward pass is Triton's for heads of up to 192 features in 16 bits. For others, and where it is itself differentiated,
    it is autograd's through the reference.

    Args:
        weights: W0 [..., dh, d], W1 [..., d, dh], W2 [..., dh, d]; batch dimensions may be shorter than the tokens' or 1.
        keys, values: [..., L, d], float32, bfloat16 or float16.
        learning_rates: η [..., L, 3].
        lengths: [B], real tokens of each row, for the tokens' first dimension; None: all.

    Returns:
        (∇W0, ∇W1, ∇W2) in the tokens' dtype.
    """
    leading, num_tokens = keys.shape[:-2], keys.shape[-2]
    if lengths is None:
        lengths = torch.full((1,), num_tokens, device=keys.device)
    else:
        lengths = lengths.to(keys.device)
        if not fits_on_chip(keys):  # products with whole arrays read padding, and 0 · NaN is NaN
            keys, values, learning_rates = (
                reference.without_padding(tokens, lengths) for tokens in (keys, values, learning_rates)
            )
    w0, w1, w2 = (weight.to(keys.dtype) for weight in flatten_weights(weights, leading))
    tokens = [flatten_matrices(tokens, leading) for tokens in (keys, values, learning_rates.to(keys.dtype))]
    found = _fast_weight_gradients(w0, w1, w2, *tokens, lengths)
    return tuple(gradient.view(*leading, *gradient.shape[-2:]) for gradient in found)


@operator("fast_weight_gradients")
def _fast_weight_gradients(
    w0: Tensor, w1: Tensor, w2: Tensor, keys: Tensor, values: Tensor, learning_rates: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return triton_kernels.fast_weight_gradients((w0, w1, w2), keys, values, learning_rates, lengths)


@_fast_weight_gradients.register_fake
def _(w0, w1, w2, keys, values, learning_rates, lengths):
    count = keys.shape[0]
    return tuple(keys.new_empty(count, *weight.shape[1:]) for weight in (w0, w1, w2))


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


@operator("fast_weight_gradients_of_weights")
def _of_weights(
    w0: Tensor, w1: Tensor, w2: Tensor, keys: Tensor, values: Tensor, learning_rates: Tensor, lengths: Tensor,
    upstream0: Tensor, upstream1: Tensor, upstream2: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    upstream = (upstream0, upstream1, upstream2)
    return on_chip_backward.weights_derivatives((w0, w1, w2), keys, values, learning_rates, lengths, upstream)


@_of_weights.register_fake
def _(w0, w1, w2, keys, values, learning_rates, lengths, *upstream):
    return tuple(gradient.new_empty(gradient.shape) for gradient in upstream)


@operator("fast_weight_gradients_of_tokens")
def _of_tokens(
    w0: Tensor, w1: Tensor, w2: Tensor, keys: Tensor, values: Tensor, learning_rates: Tensor, lengths: Tensor,
    upstream0: Tensor, upstream1: Tensor, upstream2: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    upstream = (upstream0, upstream1, upstream2)
    return on_chip_backward.tokens_derivatives((w0, w1, w2), keys, values, learning_rates, lengths, upstream)


@_of_tokens.register_fake
def _(w0, w1, w2, keys, values, learning_rates, lengths, *upstream):
    return tuple(tokens.new_empty(tokens.shape) for tokens in (keys, values, learning_rates))


def _backward(ctx, *output_gradients: Tensor) -> tuple[Tensor | None, ...]:
    w0, _, _, keys, *_ = inputs = ctx.saved_tensors
    if torch.is_grad_enabled() or not fits_on_chip(keys):
        return *_backward_by_reference(inputs, output_gradients), None
    upstream = [
        keys.new_zeros(keys.shape[0], *weight.shape[1:]) if gradient is None else gradient.contiguous()
        for gradient, weight in zip(output_gradients, inputs[:3], strict=True)
    ]
    of_weights = of_tokens = (None, None, None)
    if any(ctx.needs_input_grad[:3]):
        of_weights = (sum_over_repeats(found, w0.shape[0]) for found in _of_weights(*inputs, *upstream))
    if any(ctx.needs_input_grad[3:6]):
        of_tokens = _of_tokens(*inputs, *upstream)
    return *of_weights, *of_tokens, None


def _backward_by_reference(inputs: tuple[Tensor, ...], output_gradients: tuple[Tensor, ...]) -> list[Tensor | None]:
    *differentiable, lengths = inputs

    def by_reference(w0: Tensor, w1: Tensor, w2: Tensor, keys: Tensor, values: Tensor, rates: Tensor):
        repeats = keys.shape[0] // w0.shape[0]
        weights = tuple(weight.repeat(repeats, 1, 1) for weight in (w0, w1, w2))
        own_lengths = lengths.repeat_interleave(keys.shape[0] // lengths.shape[0])
        return reference.fast_weight_gradients(weights, keys, values, rates, own_lengths)

    return gradients_by_recomputation(by_reference, differentiable, output_gradients)


_fast_weight_gradients.register_autograd(_backward, setup_context=_setup_context)
