"""How Newton-Schulz's Triton kernels are launched: which path a size and dtype take, tile sizes, scratch memory."""

from __future__ import annotations

import functools
import math

import torch
import triton
from torch import Tensor

from lact_asr.kernels.batches import flatten_matrices
from lact_asr.kernels.newton_schulz.gram_form import GRAM_SPREAD, Coefficients, spread_coefficients
from lact_asr.kernels.newton_schulz.reference import COEFFICIENTS, NORM_EPSILON
from lact_asr.kernels.newton_schulz.triton_kernels import (
    apply_kernel,
    gram_kernel,
    polynomial_kernel,
    product_kernel,
    split_kernel,
)
from lact_asr.kernels.triton_tiles import block_depth, block_size, compute_dtype, dot_precision, triton_dtype

ONE_PROGRAM_MAX = 256  # the largest m for which one program a matrix takes all steps; beyond, each product is a launch
NARROW_TILES_MAX = 256  # up to this m tiles of 64: of 128, too much of a matrix of 192 would be padding


def newton_schulz(matrices: Tensor, coefficients: Coefficients = COEFFICIENTS) -> Tensor:
    """As `reference.newton_schulz`; float32 is computed in float32, 16 bits in float16 with sums in float32.

    Args:
        matrices: [..., m, n], float32, bfloat16 or float16; any m and n.
        coefficients: (a, b, c) for each step.

    Returns:
        [..., m, n] in the input's dtype.
    """
    flat = flatten_matrices(matrices, matrices.shape[:-2])
    out = torch.empty_like(flat)
    if flat.numel() == 0:
        return out.view(matrices.shape)
    m, n = sorted(flat.shape[-2:])
    polynomials, scales = orthogonalising_polynomials([flat], coefficients)
    rows, columns = (block_size(size, 64) for size in flat.shape[-2:])
    grid = (triton.cdiv(flat.shape[1], rows), triton.cdiv(flat.shape[2], columns), flat.shape[0])
    apply_kernel[grid](
        flat, polynomials, scales, out, m, n, math.sqrt(m * n),
        TALL=flat.shape[1] > flat.shape[2], COMPUTE=triton_dtype(polynomials.dtype),
        PRECISION=dot_precision(polynomials.dtype), BLOCK_ROWS=rows, BLOCK_COLUMNS=columns, BLOCK_K=block_depth(m, polynomials.dtype),
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return out.view(matrices.shape)


def orthogonalising_polynomials(tensors: list[Tensor], coefficients: Coefficients) -> tuple[Tensor, Tensor]:
    """Q and 1 / ‖G‖_F of every matrix of several tensors that share m and n but for their orientation.

    Args:
        tensors: each [count, m, n] or [count, n, m], contiguous.
        coefficients: (a, b, c) for each step.

    Returns:
        Q [all matrices in order, m, m], float32 or float16, and the factors, float32.
    """
    first = tensors[0]
    m = min(first.shape[-2:])
    dtype = compute_dtype(first.dtype)
    gram = torch.empty(sum(t.shape[0] for t in tensors), m, m, dtype=torch.float32, device=first.device)
    start = 0
    for tensor in tensors:
        _gram(tensor, gram[start : start + tensor.shape[0]])
        start += tensor.shape[0]
    at_once = m <= ONE_PROGRAM_MAX and dtype == torch.float16
    return (_polynomials_at_once if at_once else _polynomials_by_launches)(
        gram, spread_coefficients(coefficients), dtype
    )


def _gram(matrices: Tensor, gram: Tensor) -> None:
    count, m, _ = gram.shape
    block = _tile_edge(m, matrices)
    tiles = triton.cdiv(m, block)
    gram_kernel[(tiles * (tiles + 1) // 2, count)](
        matrices, gram, m, max(matrices.shape[-2:]), TALL=matrices.shape[-2] > matrices.shape[-1],
        PRECISION=dot_precision(matrices.dtype), BLOCK=block, BLOCK_K=block_depth(max(matrices.shape[-2:]), matrices.dtype),
        num_warps=4 if block <= 64 else 8, num_stages=3,
    )  # fmt: skip


def _tile_edge(m: int, matrices: Tensor) -> int:
    return block_size(m, 128 if m > NARROW_TILES_MAX and matrices.element_size() == 2 else 64)


@functools.lru_cache(maxsize=16)
def _coefficient_table(coefficients: Coefficients, device: torch.device) -> Tensor:
    return torch.tensor(coefficients, dtype=torch.float32, device=device)


def _polynomials_at_once(gram: Tensor, coefficients: Coefficients, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """All steps of a matrix by one program."""
    count, m, _ = gram.shape
    high, low, product, product_low, step_polynomial = torch.empty(5, *gram.shape, dtype=dtype, device=gram.device)
    polynomials = torch.empty(2, *gram.shape, dtype=dtype, device=gram.device)
    scales = torch.empty(count, dtype=torch.float32, device=gram.device)
    polynomial_kernel[(count,)](
        gram, _coefficient_table(coefficients, gram.device), high, low, polynomials, product, product_low, step_polynomial,
        scales, m, len(coefficients), NORM_EPSILON, GRAM_SPREAD,
        SPLIT=dtype == torch.float16, PRECISION=dot_precision(dtype), BLOCK=block_size(m, 64), BLOCK_K=block_depth(m, dtype),
        num_warps=8, num_stages=2,
    )  # fmt: skip
    return polynomials[(len(coefficients) - 1) % 2], scales


def _polynomials_by_launches(gram: Tensor, coefficients: Coefficients, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The same with a launch for each product, spread over the whole device; the order of `gram_form.py`."""
    parts = 2 if dtype == torch.float16 else 1
    high, low, product, product_low, step_polynomial, polynomial, spare = torch.empty(
        7, *gram.shape, dtype=dtype, device=gram.device
    )
    scales = _launch_split(gram, high, low, parts == 2)
    for step, factors in enumerate(coefficients):
        target = polynomial if step == 0 else step_polynomial
        _launch_product(high, high, target, symmetric=True, addend=high, factors=factors)
        if step > 0:
            _launch_product(step_polynomial, polynomial, spare)
            polynomial, spare = spare, polynomial
        if step + 1 == len(coefficients):
            break
        if step == 0:
            _launch_product(polynomial, high, product, right_low=low, out_low=product_low, parts=(1, parts, parts))
            _launch_product(product, polynomial, high, left_low=product_low, parts=(parts, 1, 1), symmetric=True)
        else:
            _launch_product(step_polynomial, high, product, symmetric=True)
            _launch_product(product, step_polynomial, high, symmetric=True)
    return polynomial, scales


def _launch_split(gram: Tensor, high: Tensor, low: Tensor, split: bool) -> Tensor:
    scales = torch.empty(gram.shape[0], dtype=torch.float32, device=gram.device)
    split_kernel[(gram.shape[0],)](
        gram, high, low, scales, gram.shape[1], NORM_EPSILON, GRAM_SPREAD, SPLIT=split,
        BLOCK=block_size(gram.shape[1], 64), num_warps=8,
    )  # fmt: skip
    return scales


def _launch_product(
    left: Tensor, right: Tensor, out: Tensor, *, left_low: Tensor | None = None, right_low: Tensor | None = None,
    out_low: Tensor | None = None, parts: tuple[int, int, int] = (1, 1, 1), symmetric: bool = False,
    addend: Tensor | None = None, factors: tuple[float, float, float] = (0.0, 0.0, 1.0),
    precision: str | None = None,
) -> None:  # fmt: skip
    """`product_kernel` over all tiles; ``parts`` of left, right and out."""
    count, m, _ = out.shape
    block = _tile_edge(m, out)
    tiles = triton.cdiv(m, block)
    product_kernel[(tiles * (tiles + 1) // 2 if symmetric else tiles * tiles, count)](
        left, left if left_low is None else left_low, right, right if right_low is None else right_low,
        left if addend is None else addend, out, out if out_low is None else out_low, *factors, m,
        SYMMETRIC=symmetric, LEFT_PARTS=parts[0], RIGHT_PARTS=parts[1], OUT_PARTS=parts[2], ADD=addend is not None,
        PRECISION=precision or dot_precision(out.dtype), BLOCK=block, BLOCK_K=block_depth(m, out.dtype),
        num_warps=4 if block <= 64 else 8, num_stages=3,
    )  # fmt: skip


def multiply_squares(left: Tensor, right: Tensor) -> Tensor:
    """LR of contiguous float32 [N, m, m], with TF32 products: for the backward pass, which 16 bits would be enough for."""
    left, right = left.contiguous(), right.contiguous()
    out = torch.empty_like(left)
    _launch_product(left, right, out, precision="ieee" if triton.knobs.runtime.interpret else "tf32")
    return out
