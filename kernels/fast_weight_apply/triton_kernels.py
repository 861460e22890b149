"""The fast network's forward pass in Triton: on chip where a head's features fit the registers, else by a hidden array."""

from __future__ import annotations

from torch import Tensor

from lact_asr.kernels.batches import fits_on_chip
from lact_asr.kernels.fast_weight_apply import hidden_arrays, on_chip


def fast_weight_apply(weights: tuple[Tensor, Tensor, Tensor], queries: Tensor) -> Tensor:
    """As `reference.fast_weight_apply`; products in the queries' dtype with sums in float32.

    Args:
        weights: W0, W2 [k, dh, d], W1 [k, d, dh], contiguous, of the queries' dtype; k divides count, and query batch i
            meets weights i mod k.
        queries: [count, L, d], contiguous, float32, bfloat16 or float16.

    Returns:
        [count, L, d] in the queries' dtype.
    """
    module = on_chip if fits_on_chip(queries) else hidden_arrays
    return module.fast_weight_apply(weights, queries)
