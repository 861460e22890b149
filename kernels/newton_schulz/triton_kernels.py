"""Newton-Schulz in the Gram form, in Triton: everything between the first and the last product happens on m × m matrices.

With X₀ = G / ‖G‖_F on the smaller side (m ≤ n) and A₀ = X₀X₀ᵀ, a step X ← (aI + bA + cA²) X is P = aI + bA + cA²,
Q ← PQ, A ← PAP, and the result is QX₀: two products with the large matrix in all, instead of two a step. See `gram_form.py`
for the same in plain PyTorch and for what 16 bits cost, `launches.py` for how these kernels are launched, and docs/kernels.md
for bytes and FLOPs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lact_asr.kernels.triton_tiles import load_block, lower_tile, store_block

# ---- the two ends: the Gram matrix and the final product -----------------------------------------------------------


@triton.jit
def gram_kernel(
    matrices, gram, m, n,
    TALL: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """GGᵀ of each matrix G [m, n], or GᵀG of G [n, m] where TALL, contiguous -> [m, m] float32.

    A program computes one tile of the lower triangle and writes it to both sides.
    """
    tile_row, tile_column = lower_tile(tl.program_id(0))
    index = tl.program_id(1)
    matrices += index.to(tl.int64) * m * n
    rows = tile_row * BLOCK + tl.arange(0, BLOCK)
    columns = tile_column * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, n, BLOCK_K):
        depth = start + tl.arange(0, BLOCK_K)
        if TALL:
            left = load_block(matrices, depth, rows, n, m, m, 1)
            right = load_block(matrices, depth, columns, n, m, m, 1)
            total = tl.dot(tl.trans(left), right, total, input_precision=PRECISION)
        else:
            left = load_block(matrices, rows, depth, m, n, n, 1)
            right = load_block(matrices, columns, depth, m, n, n, 1)
            total = tl.dot(left, tl.trans(right), total, input_precision=PRECISION)
    target = gram + index.to(tl.int64) * m * m
    store_block(target, total, rows, columns, m, m, m, 1)
    if tile_row != tile_column:
        store_block(target, tl.trans(total), columns, rows, m, m, m, 1)


# ---- the middle: products of m × m matrices -------------------------------------------------------------------------


@triton.jit
def _accumulate(left, right, total, rows, columns, m, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr):
    """total + LR for one tile; L and R are [m, m], contiguous."""
    for start in range(0, m, BLOCK_K):
        depth = start + tl.arange(0, BLOCK_K)
        left_block = load_block(left, rows, depth, m, m, m, 1)
        right_block = load_block(right, depth, columns, m, m, m, 1)
        total = tl.dot(left_block, right_block, total, input_precision=PRECISION)
    return total


@triton.jit
def _store_parts(out, out_low, block, rows, columns, m, PARTS: tl.constexpr):
    store_block(out, block, rows, columns, m, m, m, 1)
    if PARTS == 2:
        store_block(out_low, block - block.to(out.dtype.element_ty), rows, columns, m, m, m, 1)


@triton.jit
def _product_tile(
    tile, left, left_low, right, right_low, addend, out, out_low, alpha, beta, gamma, m,
    SYMMETRIC: tl.constexpr, LEFT_PARTS: tl.constexpr, RIGHT_PARTS: tl.constexpr, OUT_PARTS: tl.constexpr,
    ADD: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of LR, or of αI + βD + γLR where ADD, of contiguous [m, m] matrices.

    SYMMETRIC: the tile is of the lower triangle and is written to both sides. PARTS = 2: the matrix is the sum of two of
    16 bits, high and low.
    """
    if SYMMETRIC:
        tile_row, tile_column = lower_tile(tile)
    else:
        tiles = tl.cdiv(m, BLOCK)
        tile_row, tile_column = tile // tiles, tile % tiles
    rows = tile_row * BLOCK + tl.arange(0, BLOCK)
    columns = tile_column * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    total = _accumulate(left, right, total, rows, columns, m, PRECISION, BLOCK_K)
    if LEFT_PARTS == 2:
        total = _accumulate(left_low, right, total, rows, columns, m, PRECISION, BLOCK_K)
    if RIGHT_PARTS == 2:
        total = _accumulate(left, right_low, total, rows, columns, m, PRECISION, BLOCK_K)
    if ADD:
        total = beta * load_block(addend, rows, columns, m, m, m, 1) + gamma * total
        total += tl.where(rows[:, None] == columns[None, :], alpha, 0.0)
    _store_parts(out, out_low, total, rows, columns, m, OUT_PARTS)
    if SYMMETRIC:  # noqa: SIM102 (the outer condition is decided at compile time)
        if tile_row != tile_column:
            _store_parts(out, out_low, tl.trans(total), columns, rows, m, OUT_PARTS)


@triton.jit
def _all_tiles(
    left, left_low, right, right_low, addend, out, out_low, alpha, beta, gamma, m,
    SYMMETRIC: tl.constexpr, LEFT_PARTS: tl.constexpr, RIGHT_PARTS: tl.constexpr, OUT_PARTS: tl.constexpr,
    ADD: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`_product_tile` for every tile, one after the other by one program; what it wrote may then be read by all its threads."""
    tiles = tl.cdiv(m, BLOCK)
    for tile in range(tiles * (tiles + 1) // 2 if SYMMETRIC else tiles * tiles):
        _product_tile(
            tile, left, left_low, right, right_low, addend, out, out_low, alpha, beta, gamma, m,
            SYMMETRIC, LEFT_PARTS, RIGHT_PARTS, OUT_PARTS, ADD, PRECISION, BLOCK, BLOCK_K,
        )  # fmt: skip
    tl.debug_barrier()


@triton.jit
def _load_coefficients(pointer):
    return tl.load(pointer), tl.load(pointer + 1), tl.load(pointer + 2)


@triton.jit
def product_kernel(
    left, left_low, right, right_low, addend, out, out_low, alpha, beta, gamma, m,
    SYMMETRIC: tl.constexpr, LEFT_PARTS: tl.constexpr, RIGHT_PARTS: tl.constexpr, OUT_PARTS: tl.constexpr,
    ADD: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`_product_tile` for every tile of every matrix: the path of matrices too large for one multiprocessor."""
    offset = tl.program_id(1).to(tl.int64) * m * m
    _product_tile(
        tl.program_id(0), left + offset, left_low + offset, right + offset, right_low + offset, addend + offset,
        out + offset, out_low + offset, alpha, beta, gamma, m,
        SYMMETRIC, LEFT_PARTS, RIGHT_PARTS, OUT_PARTS, ADD, PRECISION, BLOCK, BLOCK_K,
    )  # fmt: skip


@triton.jit
def split_kernel(
    gram, high, low, scales, m, epsilon, gram_spread, SPLIT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The first act of `polynomial_kernel`, for matrices whose products are launched one by one."""
    index = tl.program_id(0)
    offset = index.to(tl.int64) * m * m
    _split(gram + offset, high + offset, low + offset, scales + index, m, epsilon, gram_spread, SPLIT, BLOCK)


@triton.jit
def _split(gram, high, low, scale_pointer, m, epsilon, gram_spread, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    """Gram matrix of G, float32 -> that of G / ‖G‖_F times ``gram_spread`` in two parts, and the factor 1 / ‖G‖_F."""
    trace = 0.0
    for start in range(0, m, BLOCK):
        diagonal = start + tl.arange(0, BLOCK)
        trace += tl.sum(tl.load(gram + diagonal * (m + 1), mask=diagonal < m, other=0.0), 0)
    scale = 1.0 / (tl.sqrt(trace) + epsilon)
    tl.store(scale_pointer, scale)
    for row in range(0, m, BLOCK):
        for column in range(0, m, BLOCK):
            rows = row + tl.arange(0, BLOCK)
            columns = column + tl.arange(0, BLOCK)
            # Twice by the scale: its square may be too small for float32 where G is huge.
            block = load_block(gram, rows, columns, m, m, m, 1) * scale * scale * gram_spread
            _store_parts(high, low, block, rows, columns, m, 2 if SPLIT else 1)


@triton.jit
def polynomial_kernel(
    gram, coefficients, high, low, polynomials, product, product_low, step_polynomial, scales, m, num_steps, epsilon,
    gram_spread,
    SPLIT: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gram matrix of G -> Q with U = Q · (G / ‖G‖_F), and the factor 1 / ‖G‖_F: all steps, one program a matrix.

    Its matrices A (``high``, ``low``), PA (``product``, ``product_low``), P and Q stay in the first and second level of cache;
    barriers order what one thread writes and another reads. ``polynomials`` is [2, N, m, m]: Q is multiplied from one half
    into the other and ends in half (num_steps - 1) % 2. ``coefficients`` [num_steps, 3] are for A times ``gram_spread``.
    Why the first step is split and A is spread: `gram_form.py`.
    """
    index = tl.program_id(0)
    offset = index.to(tl.int64) * m * m
    half = tl.num_programs(0).to(tl.int64) * m * m
    gram += offset
    high += offset
    low += offset
    polynomials += offset
    product += offset
    product_low += offset
    step_polynomial += offset
    PARTS: tl.constexpr = 2 if SPLIT else 1
    _split(gram, high, low, scales + index, m, epsilon, gram_spread, SPLIT, BLOCK)
    tl.debug_barrier()
    alpha, beta, gamma = _load_coefficients(coefficients)
    _all_tiles(
        high, high, high, high, high, polynomials, polynomials, alpha, beta, gamma, m,
        True, 1, 1, 1, True, PRECISION, BLOCK, BLOCK_K,
    )  # fmt: skip
    _all_tiles(
        polynomials, polynomials, high, low, high, product, product_low, 0.0, 0.0, 1.0, m,
        False, 1, PARTS, PARTS, False, PRECISION, BLOCK, BLOCK_K,
    )  # fmt: skip
    _all_tiles(
        product, product_low, polynomials, polynomials, high, high, high, 0.0, 0.0, 1.0, m,
        True, PARTS, 1, 1, False, PRECISION, BLOCK, BLOCK_K,
    )  # fmt: skip
    for step in range(1, num_steps):
        source = polynomials + (step - 1) % 2 * half
        target = polynomials + step % 2 * half
        alpha, beta, gamma = _load_coefficients(coefficients + 3 * step)
        _all_tiles(
            high, high, high, high, high, step_polynomial, step_polynomial, alpha, beta, gamma, m,
            True, 1, 1, 1, True, PRECISION, BLOCK, BLOCK_K,
        )  # fmt: skip
        _all_tiles(
            step_polynomial, step_polynomial, source, source, high, target, target, 0.0, 0.0, 1.0, m,
            False, 1, 1, 1, False, PRECISION, BLOCK, BLOCK_K,
        )  # fmt: skip
        if step + 1 < num_steps:
            _all_tiles(
                step_polynomial, step_polynomial, high, high, high, product, product, 0.0, 0.0, 1.0, m,
                True, 1, 1, 1, False, PRECISION, BLOCK, BLOCK_K,
            )  # fmt: skip
            _all_tiles(
                product, product, step_polynomial, step_polynomial, high, high, high, 0.0, 0.0, 1.0, m,
                True, 1, 1, 1, False, PRECISION, BLOCK, BLOCK_K,
            )  # fmt: skip


@triton.jit
def apply_kernel(
    matrices, polynomials, scales, out, m, n, spread,
    TALL: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """U = Q · (G / ‖G‖_F), or its transpose where G is TALL; G [rows, columns] contiguous, a tile a program."""
    index = tl.program_id(2)
    row_limit = n if TALL else m
    column_limit = m if TALL else n
    offset = index.to(tl.int64) * m * n
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    update = update_tile(
        matrices + offset, polynomials + index.to(tl.int64) * m * m, tl.load(scales + index), rows, columns, m, n, spread,
        TALL, COMPUTE, PRECISION, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_K,
    )  # fmt: skip
    store_block(out + offset, update, rows, columns, row_limit, column_limit, column_limit, 1)


@triton.jit
def update_tile(
    matrix, polynomial, scale, rows, columns, m, n, spread,
    TALL: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of QX, float32, in G's own orientation.

    G is brought to entries near 1 (``spread``), as float16 has few bits below 6e-5, and by a power of 2: then what has 16 bits
    stays exact.
    """
    factor = tl.exp2(tl.floor(tl.log2(scale * spread)))
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for start in range(0, m, BLOCK_K):
        depth = start + tl.arange(0, BLOCK_K)
        if TALL:  # (QX)ᵀ = XᵀQᵀ
            block = load_block(matrix, rows, depth, n, m, m, 1)
            block = (block.to(tl.float32) * factor).to(COMPUTE)
            factors = load_block(polynomial, columns, depth, m, m, m, 1)
            total = tl.dot(block, tl.trans(factors), total, input_precision=PRECISION)
        else:
            factors = load_block(polynomial, rows, depth, m, m, m, 1)
            block = load_block(matrix, depth, columns, m, n, n, 1)
            block = (block.to(tl.float32) * factor).to(COMPUTE)
            total = tl.dot(factors, block, total, input_precision=PRECISION)
    return total * (scale / factor)
