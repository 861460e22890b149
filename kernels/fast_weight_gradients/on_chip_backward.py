"""Derivatives of the inner gradients in two kernels, nothing of width dh in memory.

With H0 = η0 d⊙u⊙φ(g), H1 = η1 a⊙u, H2 = η2 d⊙a (a = SiLU(g), φ = SiLU'), the gradients are G0 = H0ᵀK, G1 = VᵀH1, G2 = H2ᵀK.
Their derivatives Ḡ give H̄0 = K Ḡ0ᵀ, H̄1 = V Ḡ1, H̄2 = K Ḡ2ᵀ, and

    d̄ = η0 u φ H̄0 + η2 a H̄2,   ū = η0 d φ H̄0 + η1 a H̄1,   ḡ = η0 d u φ' H̄0 + η1 u φ H̄1 + η2 d φ H̄2,
    W̄0 = ḡᵀK, W̄2 = ūᵀK, W̄1 = Vᵀd̄,
    K̄ = H0 Ḡ0 + H2 Ḡ2 + ḡ W0 + ū W2,   V̄ = H1 Ḡ1ᵀ + d̄ W1ᵀ,   η̄0 = Σ d u φ H̄0, η̄1 = Σ a u H̄1, η̄2 = Σ d a H̄2 (over dh).

The six products of width dh are computed twice, by the programs that own hidden units and by those that own tokens: at 192
features a head, that costs less than to write and read six arrays of L × dh.
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
    store_unit_rows,
    zero_chunks,
)
from lact_asr.kernels.triton_tiles import (
    OF_THE_BATCH,
    Tiles,
    dot_precision,
    has_small_shared_memory,
    load_rates,
    silu_derivatives,
)

TOKENS_TILES = Tiles(tokens=16, hidden=32, warps=8, stages=2)


@triton.jit
def hidden_derivatives(gate, up, down, from0, from1, from2, rate0, rate1, rate2):
    """ḡ, ū and d̄ of the module's equations, from H̄0, H̄1 and H̄2; the rates broadcast."""
    activated, slope, curvature = silu_derivatives(gate)
    from0, from1, from2 = from0 * rate0, from1 * rate1, from2 * rate2
    of_gate = down * up * curvature * from0 + slope * (up * from1 + down * from2)
    of_up = down * slope * from0 + activated * from1
    of_down = up * slope * from0 + activated * from2
    return of_gate, of_up, of_down


@triton.jit(do_not_specialize=OF_THE_BATCH)
def backward_weights_kernel(
    w0, w1, w2, keys, values, learning_rates, lengths, upstream0, upstream1, upstream2, of_w0, of_w1, of_w2,
    weight_count, length_divisor, num_tokens, d, dh,
    PRECISION: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
    CHUNKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """W̄0, W̄1, W̄2 of each matrix index; a program owns hidden units and passes over the tokens."""
    index = tl.program_id(1)
    hidden = tl.program_id(0) * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
    length = tl.minimum(tl.load(lengths + index // length_divisor), num_tokens)
    weight_offset = (index % weight_count).to(tl.int64) * d * dh
    own_offset = index.to(tl.int64) * d * dh
    token_offset = index.to(tl.int64) * num_tokens * d
    w0_rows, w1_rows, w2_rows = load_unit_rows(w0, w1, w2, weight_offset, hidden, dh, d, CHUNKS, WIDTH)
    rows0, rows1, rows2 = load_unit_rows(upstream0, upstream1, upstream2, own_offset, hidden, dh, d, CHUNKS, WIDTH)
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
        from0 = inner_products(rows0, key_rows, BLOCK_HIDDEN, BLOCK_TOKENS, CHUNKS, PRECISION)
        from1 = inner_products(rows1, value_rows, BLOCK_HIDDEN, BLOCK_TOKENS, CHUNKS, PRECISION)
        from2 = inner_products(rows2, key_rows, BLOCK_HIDDEN, BLOCK_TOKENS, CHUNKS, PRECISION)
        rate0, rate1, rate2 = load_rates(learning_rates, index, tokens, num_tokens, length)
        of_gate, of_up, of_down = hidden_derivatives(
            gate, up, down, from0, from1, from2, rate0[None, :], rate1[None, :], rate2[None, :]
        )
        total0 = add_product(total0, of_gate, key_rows, CHUNKS, PRECISION)
        total1 = add_product(total1, of_down, value_rows, CHUNKS, PRECISION)
        total2 = add_product(total2, of_up, key_rows, CHUNKS, PRECISION)
    store_unit_rows(of_w0, of_w1, of_w2, total0, total1, total2, own_offset, hidden, dh, d, CHUNKS, WIDTH)


@triton.jit(do_not_specialize=OF_THE_BATCH)
def backward_tokens_kernel(
    w0, w1, w2, keys, values, learning_rates, lengths, upstream0, upstream1, upstream2, of_keys, of_values, of_rates,
    weight_count, length_divisor, num_tokens, d, dh,
    PRECISION: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
    CHUNKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """K̄, V̄ and η̄ of each matrix index; a program owns tokens and passes over the hidden units. Padding gets zeros."""
    index = tl.program_id(1)
    tokens = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    length = tl.minimum(tl.load(lengths + index // length_divisor), num_tokens)
    weight_offset = (index % weight_count).to(tl.int64) * d * dh
    own_offset = index.to(tl.int64) * d * dh
    token_offset = index.to(tl.int64) * num_tokens * d
    key_rows = load_chunks(keys + token_offset, tokens, length, d, d, 1, CHUNKS, WIDTH)
    value_rows = load_chunks(values + token_offset, tokens, length, d, d, 1, CHUNKS, WIDTH)
    rate0, rate1, rate2 = load_rates(learning_rates, index, tokens, num_tokens, length)
    key_total = zero_chunks(BLOCK_TOKENS, CHUNKS, WIDTH)
    value_total = zero_chunks(BLOCK_TOKENS, CHUNKS, WIDTH)
    of_rate0 = tl.zeros((BLOCK_TOKENS,), tl.float32)
    of_rate1 = tl.zeros((BLOCK_TOKENS,), tl.float32)
    of_rate2 = tl.zeros((BLOCK_TOKENS,), tl.float32)
    for start in range(0, dh, BLOCK_HIDDEN):
        hidden = start + tl.arange(0, BLOCK_HIDDEN)
        w0_rows, w1_rows, w2_rows = load_unit_rows(w0, w1, w2, weight_offset, hidden, dh, d, CHUNKS, WIDTH)
        rows0, rows1, rows2 = load_unit_rows(upstream0, upstream1, upstream2, own_offset, hidden, dh, d, CHUNKS, WIDTH)
        gate = inner_products(key_rows, w0_rows, BLOCK_TOKENS, BLOCK_HIDDEN, CHUNKS, PRECISION)
        up = inner_products(key_rows, w2_rows, BLOCK_TOKENS, BLOCK_HIDDEN, CHUNKS, PRECISION)
        down = inner_products(value_rows, w1_rows, BLOCK_TOKENS, BLOCK_HIDDEN, CHUNKS, PRECISION)
        from0 = inner_products(key_rows, rows0, BLOCK_TOKENS, BLOCK_HIDDEN, CHUNKS, PRECISION)
        from1 = inner_products(value_rows, rows1, BLOCK_TOKENS, BLOCK_HIDDEN, CHUNKS, PRECISION)
        from2 = inner_products(key_rows, rows2, BLOCK_TOKENS, BLOCK_HIDDEN, CHUNKS, PRECISION)
        activated, slope, _ = silu_derivatives(gate)
        unit0, unit1, unit2 = down * up * slope, activated * up, down * activated  # H at learning rates of 1
        of_rate0 += tl.sum(unit0 * from0, axis=1)
        of_rate1 += tl.sum(unit1 * from1, axis=1)
        of_rate2 += tl.sum(unit2 * from2, axis=1)
        of_gate, of_up, of_down = hidden_derivatives(
            gate, up, down, from0, from1, from2, rate0[:, None], rate1[:, None], rate2[:, None]
        )
        key_total = add_product(key_total, unit0 * rate0[:, None], rows0, CHUNKS, PRECISION)
        key_total = add_product(key_total, unit2 * rate2[:, None], rows2, CHUNKS, PRECISION)
        key_total = add_product(key_total, of_gate, w0_rows, CHUNKS, PRECISION)
        key_total = add_product(key_total, of_up, w2_rows, CHUNKS, PRECISION)
        value_total = add_product(value_total, unit1 * rate1[:, None], rows1, CHUNKS, PRECISION)
        value_total = add_product(value_total, of_down, w1_rows, CHUNKS, PRECISION)
    store_chunks(of_keys + token_offset, key_total, tokens, num_tokens, d, d, 1, CHUNKS, WIDTH)
    store_chunks(of_values + token_offset, value_total, tokens, num_tokens, d, d, 1, CHUNKS, WIDTH)
    rates = of_rates + (index.to(tl.int64) * num_tokens + tokens) * 3
    tl.store(rates, of_rate0, mask=tokens < num_tokens)
    tl.store(rates + 1, of_rate1, mask=tokens < num_tokens)
    tl.store(rates + 2, of_rate2, mask=tokens < num_tokens)


def default_weights_tiles() -> Tiles:
    """Those of `backward_weights_kernel` that fit shared memory."""
    return Tiles(tokens=32 if has_small_shared_memory() else 64, hidden=32, warps=8, stages=2)


def weights_derivatives(
    weights: tuple[Tensor, Tensor, Tensor], keys: Tensor, values: Tensor, learning_rates: Tensor, lengths: Tensor,
    upstream: tuple[Tensor, Tensor, Tensor], tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(W̄0, W̄1, W̄2) of each matrix index; products in the tokens' dtype with sums in float32.

    Args:
        weights, keys, values, learning_rates, lengths: as of `triton_kernels.fast_weight_gradients`.
        upstream: Ḡ0, Ḡ1, Ḡ2, contiguous, shaped and typed as the gradients.
        tiles: how the work is divided; None: `default_weights_tiles`.
    """
    dh = weights[0].shape[-2]
    tiles = tiles or default_weights_tiles()
    inputs, sizes, constants = _launch_arguments(weights, keys, values, learning_rates, lengths, upstream, tiles)
    derivatives = tuple(torch.empty_like(gradient) for gradient in upstream)
    if keys.shape[0] > 0:
        backward_weights_kernel[(triton.cdiv(dh, constants["BLOCK_HIDDEN"]), keys.shape[0])](
            *inputs, *derivatives, *sizes, **constants
        )
    return derivatives


def tokens_derivatives(
    weights: tuple[Tensor, Tensor, Tensor], keys: Tensor, values: Tensor, learning_rates: Tensor, lengths: Tensor,
    upstream: tuple[Tensor, Tensor, Tensor], tiles: Tiles = TOKENS_TILES,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(K̄, V̄, η̄) with zeros for padding; arguments and precision as of `weights_derivatives`."""
    inputs, sizes, constants = _launch_arguments(weights, keys, values, learning_rates, lengths, upstream, tiles)
    derivatives = tuple(torch.empty_like(tokens) for tokens in (keys, values, learning_rates))
    if keys.numel() > 0:
        backward_tokens_kernel[(triton.cdiv(keys.shape[1], constants["BLOCK_TOKENS"]), keys.shape[0])](
            *inputs, *derivatives, *sizes, **constants
        )
    return derivatives


def _launch_arguments(
    weights, keys, values, learning_rates, lengths, upstream, tiles: Tiles
) -> tuple[tuple[Tensor, ...], tuple[int, ...], dict]:
    """What both kernels are launched with: (their inputs, the sizes behind their outputs, compile-time arguments)."""
    count, num_tokens, d = keys.shape
    dh = weights[0].shape[-2]
    constants = {
        "PRECISION": dot_precision(keys.dtype), **tiles.launch_arguments(num_tokens, dh), **chunks_of(d)
    }  # fmt: skip
    sizes = (weights[0].shape[0], count // lengths.shape[0], num_tokens, d, dh)
    return (*weights, keys, values, learning_rates, lengths, *upstream), sizes, constants
