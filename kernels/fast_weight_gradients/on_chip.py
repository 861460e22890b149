"""The inner gradients in one kernel: everything of width dh stays on chip.

A program owns some hidden units (rows of W0, W2 and W1ᵀ) and passes over the tokens, as flash attention passes over keys:
g, u and d of a block of tokens are computed, used for all three gradients, and forgotten.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lact_asr.kernels.column_chunks import (
    add_product,
    chunks_of,
    inner_products,
    load_chunks,
    load_unit_rows,
    store_unit_rows,
    zero_chunks,
)
from lact_asr.kernels.triton_tiles import OF_THE_BATCH, Tiles, dot_precision, load_rates, silu_derivatives

TILES = Tiles(tokens=32, hidden=32, warps=8, stages=3)


@triton.jit(do_not_specialize=OF_THE_BATCH)
def gradients_kernel(
    w0, w1, w2, keys, values, learning_rates, lengths, gradient0, gradient1, gradient2,
    weight_count, length_divisor, num_tokens, d, dh,
    PRECISION: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
    CHUNKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """∇W0 = Σ η0 (d⊙u⊙s(1 + g(1 − s))) kᵀ, ∇W1ᵀ = Σ η1 (SiLU(g)⊙u) vᵀ, ∇W2 = Σ η2 (d⊙SiLU(g)) kᵀ of each matrix index.

    k, v [L, d], η [L, 3]; g = W0 k, u = W2 k, d = W1ᵀv, s = σ(g). Tokens beyond their row's length are not read.
    ``lengths`` are indexed by matrix index // ``length_divisor``, weights modulo their count.
    """
    index = tl.program_id(1)
    hidden = tl.program_id(0) * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
    length = tl.minimum(tl.load(lengths + index // length_divisor), num_tokens)
    weight_offset = (index % weight_count).to(tl.int64) * d * dh
    token_offset = index.to(tl.int64) * num_tokens * d
    w0_rows, w1_rows, w2_rows = load_unit_rows(w0, w1, w2, weight_offset, hidden, dh, d, CHUNKS, WIDTH)
    total0 = zero_chunks(BLOCK_HIDDEN, CHUNKS, WIDTH)
    total1 = zero_chunks(BLOCK_HIDDEN, CHUNKS, WIDTH)
    total2 = zero_chunks(BLOCK_HIDDEN, CHUNKS, WIDTH)
    for start in range(0, length, BLOCK_TOKENS):
        tokens = start + tl.arange(0, BLOCK_TOKENS)
        key_rows = load_chunks(keys + token_offset, tokens, length, d, d, 1, CHUNKS, WIDTH)
        value_rows = load_chunks(values + token_offset, tokens, length, d, d, 1, CHUNKS, WIDTH)
        gate = inner_products(w0_rows, key_rows, BLOCK_HIDDEN, BLOCK_TOKENS, CHUNKS, PRECISION)
        up = inner_products(w2_rows, key_rows, BLOCK_HIDDEN, BLOCK_TOKENS, CHUNKS, PRECISION)
        down = inner_products(w1_rows, value_rows, BLOCK_HIDDEN, BLOCK_TOKENS, CHUNKS, PRECISION)
        rate0, rate1, rate2 = load_rates(learning_rates, index, tokens, num_tokens, length)
        activated, slope, _ = silu_derivatives(gate)
        total0 = add_product(total0, down * up * slope * rate0[None, :], key_rows, CHUNKS, PRECISION)
        total1 = add_product(total1, activated * up * rate1[None, :], value_rows, CHUNKS, PRECISION)
        total2 = add_product(total2, down * activated * rate2[None, :], key_rows, CHUNKS, PRECISION)
    out_offset = index.to(tl.int64) * d * dh
    store_unit_rows(gradient0, gradient1, gradient2, total0, total1, total2, out_offset, hidden, dh, d, CHUNKS, WIDTH)


def fast_weight_gradients(
    weights: tuple[Tensor, Tensor, Tensor], keys: Tensor, values: Tensor, learning_rates: Tensor, lengths: Tensor,
    tiles: Tiles = TILES,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See `lact_asr.kernels.fast_weight_gradients.triton_kernels.fast_weight_gradients`."""
    count, num_tokens, d = keys.shape
    dh = weights[0].shape[-2]
    gradients = tuple(torch.empty(count, *w.shape[1:], dtype=keys.dtype, device=keys.device) for w in weights)
    blocks = tiles.launch_arguments(num_tokens, dh)
    if count > 0:
        gradients_kernel[(triton.cdiv(dh, blocks["BLOCK_HIDDEN"]), count)](
            *weights, keys, values, learning_rates, lengths, *gradients,
            weights[0].shape[0], count // lengths.shape[0], num_tokens, d, dh,
            PRECISION=dot_precision(keys.dtype), **blocks, **chunks_of(d),
        )  # fmt: skip
    return gradients
