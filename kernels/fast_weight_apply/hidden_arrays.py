"""The forward pass of wide heads' fast networks: SiLU(W0 q) ⊙ (W2 q) in one kernel, then one GEMM with W1."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lact_asr.kernels.triton_tiles import OF_THE_BATCH, block_depth, block_size, dot_precision, load_block, store_block


@triton.jit(do_not_specialize=OF_THE_BATCH)
def hidden_kernel(
    w0, w2, queries, out, weight_count, num_tokens, d, dh,
    PRECISION: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """SiLU(W0 q) ⊙ (W2 q), [L, dh], of queries [L, d] for each matrix index; weights are taken modulo their count."""
    index = tl.program_id(2)
    tokens = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    hidden = tl.program_id(1) * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
    queries += index.to(tl.int64) * num_tokens * d
    weight_offset = (index % weight_count).to(tl.int64) * d * dh
    gate = tl.zeros((BLOCK_TOKENS, BLOCK_HIDDEN), tl.float32)
    up = tl.zeros((BLOCK_TOKENS, BLOCK_HIDDEN), tl.float32)
    for start in range(0, d, BLOCK_K):
        depth = start + tl.arange(0, BLOCK_K)
        query_block = load_block(queries, tokens, depth, num_tokens, d, d, 1)
        w0_block = load_block(w0 + weight_offset, hidden, depth, dh, d, d, 1)
        w2_block = load_block(w2 + weight_offset, hidden, depth, dh, d, d, 1)
        gate = tl.dot(query_block, tl.trans(w0_block), gate, input_precision=PRECISION)
        up = tl.dot(query_block, tl.trans(w2_block), up, input_precision=PRECISION)
    out += index.to(tl.int64) * num_tokens * dh
    store_block(out, gate * tl.sigmoid(gate) * up, tokens, hidden, num_tokens, dh, dh, 1)


def fast_weight_apply(weights: tuple[Tensor, Tensor, Tensor], queries: Tensor) -> Tensor:
    """See `triton_kernels.fast_weight_apply`."""
    w0, w1, w2 = weights
    count, num_tokens, d = queries.shape
    dh = w0.shape[-2]
    hidden = torch.empty(count, num_tokens, dh, dtype=queries.dtype, device=queries.device)
    in_16_bits = queries.element_size() == 2
    block_tokens = block_size(num_tokens, 128 if in_16_bits else 64)
    block_hidden = block_size(dh, 64 if in_16_bits else 32)
    if hidden.numel() > 0:
        hidden_kernel[(triton.cdiv(num_tokens, block_tokens), triton.cdiv(dh, block_hidden), count)](
            w0, w2, queries, hidden, w0.shape[0], num_tokens, d, dh,
            PRECISION=dot_precision(queries.dtype), BLOCK_TOKENS=block_tokens, BLOCK_HIDDEN=block_hidden,
            BLOCK_K=block_depth(d, queries.dtype), num_warps=8, num_stages=3,
        )  # fmt: skip
    w1 = w1.expand(count, -1, -1) if w1.shape[0] == 1 else w1.repeat(count // w1.shape[0], 1, 1)
    return hidden @ w1.mT
