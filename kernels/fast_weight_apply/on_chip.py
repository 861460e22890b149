"""The fast network's forward pass and its queries' derivative, each in one kernel: everything of width dh stays on chip.

A program owns tokens and passes over the hidden units. The weights' derivatives are those of `fast_weight_gradients` at
learning rates of 1, with the queries as keys and the output's derivative as values.
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
    store_chunks,
    zero_chunks,
)
from lact_asr.kernels.triton_tiles import OF_THE_BATCH, Tiles, dot_precision, has_small_shared_memory, silu_derivatives

QUERIES_TILES = Tiles(tokens=32, hidden=64, warps=8, stages=2)


@triton.jit(do_not_specialize=OF_THE_BATCH)
def swiglu_kernel(
    w0, w1, w2, queries, out, weight_count, num_tokens, d, dh,
    PRECISION: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
    CHUNKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """W1 (SiLU(W0 q) ⊙ (W2 q)) of each matrix index; weights are taken modulo their count."""
    index = tl.program_id(1)
    tokens = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    weight_offset = (index % weight_count).to(tl.int64) * d * dh
    token_offset = index.to(tl.int64) * num_tokens * d
    query_rows = load_chunks(queries + token_offset, tokens, num_tokens, d, d, 1, CHUNKS, WIDTH)
    total = zero_chunks(BLOCK_TOKENS, CHUNKS, WIDTH)
    for start in range(0, dh, BLOCK_HIDDEN):
        hidden = start + tl.arange(0, BLOCK_HIDDEN)
        w0_rows, w1_rows, w2_rows = load_unit_rows(w0, w1, w2, weight_offset, hidden, dh, d, CHUNKS, WIDTH)
        gate = inner_products(query_rows, w0_rows, BLOCK_TOKENS, BLOCK_HIDDEN, CHUNKS, PRECISION)
        up = inner_products(query_rows, w2_rows, BLOCK_TOKENS, BLOCK_HIDDEN, CHUNKS, PRECISION)
        total = add_product(total, gate * tl.sigmoid(gate) * up, w1_rows, CHUNKS, PRECISION)
    store_chunks(out + token_offset, total, tokens, num_tokens, d, d, 1, CHUNKS, WIDTH)


@triton.jit(do_not_specialize=OF_THE_BATCH)
def swiglu_queries_kernel(
    w0, w1, w2, queries, upstream, out, weight_count, num_tokens, d, dh,
    PRECISION: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
    CHUNKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """W0ᵀ (h̄ ⊙ u ⊙ SiLU'(g)) + W2ᵀ (h̄ ⊙ SiLU(g)), h̄ = W1ᵀ ȳ, of each matrix index: the queries' derivative."""
    index = tl.program_id(1)
    tokens = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    weight_offset = (index % weight_count).to(tl.int64) * d * dh
    token_offset = index.to(tl.int64) * num_tokens * d
    query_rows = load_chunks(queries + token_offset, tokens, num_tokens, d, d, 1, CHUNKS, WIDTH)
    upstream_rows = load_chunks(upstream + token_offset, tokens, num_tokens, d, d, 1, CHUNKS, WIDTH)
    total = zero_chunks(BLOCK_TOKENS, CHUNKS, WIDTH)
    for start in range(0, dh, BLOCK_HIDDEN):
        hidden = start + tl.arange(0, BLOCK_HIDDEN)
        w0_rows, w1_rows, w2_rows = load_unit_rows(w0, w1, w2, weight_offset, hidden, dh, d, CHUNKS, WIDTH)
        gate = inner_products(query_rows, w0_rows, BLOCK_TOKENS, BLOCK_HIDDEN, CHUNKS, PRECISION)
        up = inner_products(query_rows, w2_rows, BLOCK_TOKENS, BLOCK_HIDDEN, CHUNKS, PRECISION)
        down = inner_products(upstream_rows, w1_rows, BLOCK_TOKENS, BLOCK_HIDDEN, CHUNKS, PRECISION)
        activated, slope, _ = silu_derivatives(gate)
        total = add_product(total, down * up * slope, w0_rows, CHUNKS, PRECISION)
        total = add_product(total, down * activated, w2_rows, CHUNKS, PRECISION)
    store_chunks(out + token_offset, total, tokens, num_tokens, d, d, 1, CHUNKS, WIDTH)


def default_tiles() -> Tiles:
    """Those of `swiglu_kernel` that spill no registers."""
    return Tiles(tokens=128, hidden=16 if has_small_shared_memory() else 32, warps=8, stages=2)


def fast_weight_apply(
    weights: tuple[Tensor, Tensor, Tensor], queries: Tensor, tiles: Tiles | None = None
) -> Tensor:  # fmt: skip
    """See `lact_asr.kernels.fast_weight_apply.triton_kernels.fast_weight_apply`."""
    return _over_tokens(swiglu_kernel, weights, (queries,), tiles or default_tiles())


def queries_derivative(
    weights: tuple[Tensor, Tensor, Tensor], queries: Tensor, upstream: Tensor, tiles: Tiles = QUERIES_TILES
) -> Tensor:
    """The queries' part of the vector-Jacobian product with ``upstream``, shaped as the output; [count, L, d]."""
    return _over_tokens(swiglu_queries_kernel, weights, (queries, upstream), tiles)


def _over_tokens(kernel, weights: tuple[Tensor, Tensor, Tensor], tokens: tuple[Tensor, ...], tiles: Tiles) -> Tensor:
    """Launch ``kernel``, whose programs own some tokens each."""
    count, num_tokens, d = tokens[0].shape
    dh = weights[0].shape[-2]
    out = torch.empty_like(tokens[0])
    blocks = tiles.launch_arguments(num_tokens, dh)
    if out.numel() > 0:
        kernel[(triton.cdiv(num_tokens, blocks["BLOCK_TOKENS"]), count)](
            *weights, *tokens, out, weights[0].shape[0], num_tokens, d, dh,
            PRECISION=dot_precision(out.dtype), **blocks, **chunks_of(d),
        )  # fmt: skip
    return out
