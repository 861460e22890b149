"""[rows, d] blocks as tuples of [rows, WIDTH] chunks of their columns.

Triton's blocks have powers of two as edges. A head of 192 features is three chunks of 64: nothing of it is padding, and
accumulators of a whole row fit the registers. WIDTH and the number of chunks are compile-time constants; columns beyond d are 0.
"""

# ruff: noqa: RUF005 - Triton's language has no unpacking

from __future__ import annotations

import triton
import triton.language as tl

from lact_asr.kernels.triton_tiles import block_size, load_block, store_block

WIDEST_CHUNK = 64


def chunks_of(size: int) -> dict[str, int]:
    """The compile-time arguments that cut rows of ``size`` features into chunks."""
    width = block_size(size, WIDEST_CHUNK)
    return {"CHUNKS": triton.cdiv(size, width), "WIDTH": width}


@triton.jit
def load_chunks(
    pointer, rows, row_limit, column_limit, row_stride, column_stride, CHUNKS: tl.constexpr, WIDTH: tl.constexpr
):
    """Rows of one matrix, zero outside of it."""
    blocks = ()
    for chunk in tl.static_range(CHUNKS):
        columns = chunk * WIDTH + tl.arange(0, WIDTH)
        blocks = blocks + (load_block(pointer, rows, columns, row_limit, column_limit, row_stride, column_stride),)
    return blocks


@triton.jit
def store_chunks(
    pointer, blocks, rows, row_limit, column_limit, row_stride, column_stride, CHUNKS: tl.constexpr, WIDTH: tl.constexpr
):
    for chunk in tl.static_range(CHUNKS):
        columns = chunk * WIDTH + tl.arange(0, WIDTH)
        store_block(pointer, blocks[chunk], rows, columns, row_limit, column_limit, row_stride, column_stride)


@triton.jit
def load_unit_rows(first, second, third, offset, hidden, dh, d, CHUNKS: tl.constexpr, WIDTH: tl.constexpr):
    """What belongs to some hidden units, a row each, of three matrices shaped as W0 [dh, d], W1 [d, dh] and W2 [dh, d]."""
    first_rows = load_chunks(first + offset, hidden, dh, d, d, 1, CHUNKS, WIDTH)
    second_rows = load_chunks(second + offset, hidden, dh, d, 1, dh, CHUNKS, WIDTH)
    third_rows = load_chunks(third + offset, hidden, dh, d, d, 1, CHUNKS, WIDTH)
    return first_rows, second_rows, third_rows


@triton.jit
def store_unit_rows(
    first, second, third, first_rows, second_rows, third_rows, offset, hidden, dh, d,
    CHUNKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The inverse of `load_unit_rows`."""
    store_chunks(first + offset, first_rows, hidden, dh, d, d, 1, CHUNKS, WIDTH)
    store_chunks(second + offset, second_rows, hidden, dh, d, 1, dh, CHUNKS, WIDTH)
    store_chunks(third + offset, third_rows, hidden, dh, d, d, 1, CHUNKS, WIDTH)


@triton.jit
def zero_chunks(ROWS: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr):
    """Accumulators in float32."""
    blocks = ()
    for _ in tl.static_range(CHUNKS):
        blocks = blocks + (tl.zeros((ROWS, WIDTH), tl.float32),)
    return blocks


@triton.jit
def inner_products(
    left, right, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNKS: tl.constexpr, PRECISION: tl.constexpr
):
    """Of each row of ``left`` with each row of ``right``: [ROWS, COLUMNS] float32."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for chunk in tl.static_range(CHUNKS):
        total = tl.dot(left[chunk], tl.trans(right[chunk]), total, input_precision=PRECISION)
    return total


@triton.jit
def add_product(totals, left, right, CHUNKS: tl.constexpr, PRECISION: tl.constexpr):
    """totals + left · right, where ``left`` is rounded to the dtype of ``right`` first."""
    sums = ()
    for chunk in tl.static_range(CHUNKS):
        factor = left.to(right[chunk].dtype)
        sums = sums + (tl.dot(factor, right[chunk], totals[chunk], input_precision=PRECISION),)
    return sums
