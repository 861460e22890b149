"""The inner gradients of wide heads: the three products with tokens and all that is element-wise in one kernel, then three GEMMs.

Plain PyTorch writes g, u and d, each [L, dh], reads them, and writes three more for the gradients' products: twelve passes
over such arrays. Here g, u and d stay in registers, and six passes are left.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lact_asr.kernels.triton_tiles import (
    OF_THE_BATCH,
    block_size,
    dot_precision,
    load_block,
    load_rates,
    silu_derivatives,
    store_block,
)


@triton.jit(do_not_specialize=OF_THE_BATCH)
def hidden_gradients_kernel(
    w0, w1, w2, keys, values, learning_rates, lengths, hidden0, hidden1, hidden2, weight_count, length_divisor,
    num_tokens, d, dh,
    PRECISION: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """η0 d⊙u⊙s(1 + g(1 − s)), η1 SiLU(g)⊙u and η2 d⊙SiLU(g), each [L, dh], of each matrix index.

    k, v [L, d], η [L, 3]; g = W0 k, u = W2 k, d = W1ᵀv, s = σ(g). Tokens beyond their row's length are neither read nor
    computed: their outputs are 0. ``lengths`` are indexed by matrix index // ``length_divisor``, weights modulo their count.
    """
    index = tl.program_id(2)
    tokens = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    hidden = tl.program_id(1) * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
    length = tl.minimum(tl.load(lengths + index // length_divisor), num_tokens)
    gate = tl.zeros((BLOCK_TOKENS, BLOCK_HIDDEN), tl.float32)
    up = tl.zeros((BLOCK_TOKENS, BLOCK_HIDDEN), tl.float32)
    down = tl.zeros((BLOCK_TOKENS, BLOCK_HIDDEN), tl.float32)
    if tl.program_id(0) * BLOCK_TOKENS < length:
        token_offset = index.to(tl.int64) * num_tokens * d
        weight_offset = (index % weight_count).to(tl.int64) * d * dh
        for start in range(0, d, BLOCK_K):
            depth = start + tl.arange(0, BLOCK_K)
            key_block = load_block(keys + token_offset, tokens, depth, length, d, d, 1)
            value_block = load_block(values + token_offset, tokens, depth, length, d, d, 1)
            w0_block = load_block(w0 + weight_offset, hidden, depth, dh, d, d, 1)
            w2_block = load_block(w2 + weight_offset, hidden, depth, dh, d, d, 1)
            w1_block = load_block(w1 + weight_offset, depth, hidden, d, dh, dh, 1)
            gate = tl.dot(key_block, tl.trans(w0_block), gate, input_precision=PRECISION)
            up = tl.dot(key_block, tl.trans(w2_block), up, input_precision=PRECISION)
            down = tl.dot(value_block, w1_block, down, input_precision=PRECISION)
    rate0, rate1, rate2 = load_rates(learning_rates, index, tokens, num_tokens, length)
    activated, slope, _ = silu_derivatives(gate)
    through_gate = down * up * slope * rate0[:, None]
    offset = index.to(tl.int64) * num_tokens * dh
    store_block(hidden0 + offset, through_gate, tokens, hidden, num_tokens, dh, dh, 1)
    store_block(hidden1 + offset, activated * up * rate1[:, None], tokens, hidden, num_tokens, dh, dh, 1)
    store_block(hidden2 + offset, down * activated * rate2[:, None], tokens, hidden, num_tokens, dh, dh, 1)


def fast_weight_gradients(
    weights: tuple[Tensor, Tensor, Tensor], keys: Tensor, values: Tensor, learning_rates: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `triton_kernels.fast_weight_gradients`. The kernel does not read padding, but the products after it do."""
    w0, w1, w2 = weights
    count, num_tokens, d = keys.shape
    dh = w0.shape[-2]
    hidden = torch.empty(3, count, num_tokens, dh, dtype=keys.dtype, device=keys.device)
    in_16_bits = keys.element_size() == 2
    block_tokens = block_size(num_tokens, 128 if in_16_bits else 64)
    block_hidden = block_size(dh, 64 if in_16_bits else 32)
    if hidden.numel() > 0:
        hidden_gradients_kernel[(triton.cdiv(num_tokens, block_tokens), triton.cdiv(dh, block_hidden), count)](
            w0, w1, w2, keys, values, learning_rates, lengths, *hidden, w0.shape[0],
            count // lengths.shape[0], num_tokens, d, dh,
            PRECISION=dot_precision(keys.dtype), BLOCK_TOKENS=block_tokens, BLOCK_HIDDEN=block_hidden,
            BLOCK_K=block_size(d, 32), num_warps=8, num_stages=3,
        )  # fmt: skip
    return hidden[0].mT @ keys, values.mT @ hidden[1], hidden[2].mT @ keys
