"""The inner gradients in Triton: on chip where a head's features fit the registers, by hidden arrays where they do not."""

from __future__ import annotations

from torch import Tensor

from lact_asr.kernels.batches import fits_on_chip
from lact_asr.kernels.fast_weight_gradients import hidden_arrays, on_chip


def fast_weight_gradients(
    weights: tuple[Tensor, Tensor, Tensor], keys: Tensor, values: Tensor, learning_rates: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.fast_weight_gradients`; products in the tokens' dtype with sums in float32.

    Args:
        weights: W0, W2 [k, dh, d], W1 [k, d, dh], contiguous, of the tokens' dtype; k divides count, and token batch i meets
            weights i mod k.
        keys, values: [count, L, d], contiguous, float32, bfloat16 or float16.
        learning_rates: [count, L, 3], contiguous.
        lengths: [rows] integers, real tokens of each row of the batch; rows divide count. Wide heads and float32 need keys and
            values beyond to be 0; the on-chip kernels do not read them.

    Returns:
        (∇W0 [count, dh, d], ∇W1 [count, d, dh], ∇W2 [count, dh, d]) in the tokens' dtype.
    """
    module = on_chip if fits_on_chip(keys) else hidden_arrays
    return module.fast_weight_gradients(weights, keys, values, learning_rates, lengths)
