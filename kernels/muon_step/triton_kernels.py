"""The Muon step in Triton: Newton-Schulz's last product, the sum with W and the rescaling of its rows in one kernel.

Seven launches for the three matrices of a layer: a Gram matrix for each, one for all small matrices together, and one
update for each (`newton_schulz/triton_kernels.py` has the first two kinds).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lact_asr.kernels.muon_step.reference import ROW_NORM_EPSILON
from lact_asr.kernels.newton_schulz.gram_form import Coefficients
from lact_asr.kernels.newton_schulz.launches import orthogonalising_polynomials
from lact_asr.kernels.newton_schulz.reference import COEFFICIENTS
from lact_asr.kernels.newton_schulz.triton_kernels import update_tile
from lact_asr.kernels.triton_tiles import (
    OF_THE_BATCH,
    block_depth,
    block_size,
    dot_precision,
    load_block,
    store_block,
    triton_dtype,
)


@triton.jit(do_not_specialize=OF_THE_BATCH)
def weight_update_kernel(
    weights, gradients, polynomials, scales, target_norms, out, weight_count, norm_count, m, n, spread, epsilon,
    TALL: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """W + QX with every row rescaled to its target norm; a program takes whole rows of one matrix.

    W [m, n], or [n, m] where TALL, contiguous. Where there are fewer W than gradients, they are taken in turn: all rows of a
    batch then share the heads' initial weights, without copies. Rows are written unscaled first and rescaled in a second pass over what the program itself has just written.
    """
    index = tl.program_id(1)
    row_limit = n if TALL else m
    column_limit = m if TALL else n
    offset = index.to(tl.int64) * m * n
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    weights += (index % weight_count).to(tl.int64) * m * n
    scale = tl.load(scales + index)
    squares = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in range(0, column_limit, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        updated = update_tile(
            gradients + offset, polynomials + index.to(tl.int64) * m * m, scale, rows, columns, m, n, spread,
            TALL, COMPUTE, PRECISION, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_K,
        )  # fmt: skip
        updated += load_block(weights, rows, columns, row_limit, column_limit, column_limit, 1)
        squares += tl.sum(updated * updated, 1)
        store_block(out + offset, updated, rows, columns, row_limit, column_limit, column_limit, 1)
    target = tl.load(target_norms + (index % norm_count) * row_limit + rows, mask=rows < row_limit, other=0.0)
    factor = target.to(tl.float32) / tl.maximum(tl.sqrt(squares), epsilon)
    tl.debug_barrier()  # what one thread has written, another may read below
    for start in range(0, column_limit, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        block = load_block(out + offset, rows, columns, row_limit, column_limit, column_limit, 1)
        block = block.to(tl.float32) * factor[:, None]
        store_block(out + offset, block, rows, columns, row_limit, column_limit, column_limit, 1)


def muon_step(
    weights: tuple[Tensor, ...], gradients: tuple[Tensor, ...], target_row_norms: tuple[Tensor, ...],
    coefficients: Coefficients = COEFFICIENTS,
) -> tuple[Tensor, ...]:  # fmt: skip
    """As `reference.muon_step` without momentum, for several matrices whose smaller and larger sides agree.

    Args:
        weights: each [k, m, n] or [k, n, m], contiguous; k divides count, and gradient i steps from weight i mod k.
        gradients: each [count, m, n] or [count, n, m], contiguous, of the weights' orientation.
        target_row_norms: each [k, rows], contiguous; k divides count.
        coefficients: of Newton-Schulz.

    Returns:
        The weights after the step, in the gradients' shapes and the weights' dtype.
    """
    polynomials, scales = orthogonalising_polynomials(list(gradients), coefficients)
    updated, start = [], 0
    for weight, gradient, norms in zip(weights, gradients, target_row_norms, strict=True):
        part = slice(start, start + gradient.shape[0])
        updated.append(_update(weight, gradient, norms, polynomials[part], scales[part]))
        start += gradient.shape[0]
    return tuple(updated)


def _update(weight: Tensor, gradient: Tensor, norms: Tensor, polynomials: Tensor, scales: Tensor) -> Tensor:
    count, rows, columns = gradient.shape
    m, n = min(rows, columns), max(rows, columns)
    out = torch.empty(gradient.shape, dtype=weight.dtype, device=weight.device)
    block_rows, block_columns = block_size(rows, 64), block_size(columns, 64)
    weight_update_kernel[(triton.cdiv(rows, block_rows), count)](
        weight, gradient, polynomials, scales, norms, out,
        weight.shape[0], norms.shape[0], m, n, math.sqrt(m * n), ROW_NORM_EPSILON,
        TALL=rows > columns, COMPUTE=triton_dtype(polynomials.dtype), PRECISION=dot_precision(polynomials.dtype),
        BLOCK_ROWS=block_rows, BLOCK_COLUMNS=block_columns, BLOCK_K=block_depth(m, polynomials.dtype),
        num_warps=4 if polynomials.element_size() == 2 else 8, num_stages=3,
    )  # fmt: skip
    return out
