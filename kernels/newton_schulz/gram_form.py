"""Newton-Schulz on the Gram matrix in plain PyTorch: the algorithm of the Triton kernels, with the same roundings.

X ← (aI + bA + cA²) X with A = XXᵀ only ever multiplies X from the left by polynomials of A₀. So a step needs no X:
P = aI + bA + cA², Q ← PQ, A ← PAP, all m × m on the smaller side, and the result is QX₀. With m = 192 and n = 1536 five steps
take 0.5 GFLOP instead of 1.2.

What 16 bits cost: the rounding of A₀ hides every singular value below some 1/50 of the largest, and the steps then magnify
the error a few hundred times (36 % on gradients of keys that share a mean). Kept in two parts, high + low, for the first
step alone, A leaves 0.5 %; plain bfloat16 iteration on X leaves 2.8 % there (tests/kernels/newton_schulz/test_gram_form.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lact_asr.kernels.newton_schulz.reference import COEFFICIENTS, NORM_EPSILON

Coefficients = tuple[tuple[float, float, float], ...]
GRAM_SPREAD = 2.0**11  # A is kept times this: its entries are about 1/m², and float16 has few bits below 6e-5


def gram_newton_schulz(
    matrices: Tensor,
    coefficients: Coefficients = COEFFICIENTS,
    rounding: torch.dtype = torch.float16,
) -> Tensor:
    """As `reference.newton_schulz`, computed on the Gram matrix with every stored matrix rounded to ``rounding``.

    Args:
        matrices: [..., m, n], any float dtype.
        coefficients: (a, b, c) for each step, at least one.
        rounding: dtype that matrices are kept in between products, which are summed in the input's dtype, or in float32
            for an input of 16 bits. With the input's own dtype nothing is rounded.

    Returns:
        [..., m, n], in the dtype that products are summed in.
    """
    matrices = matrices.float() if matrices.dtype in (torch.float16, torch.bfloat16) else matrices
    transposed = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if transposed else matrices
    gram = wide @ wide.mT
    norm = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].sqrt() + NORM_EPSILON
    polynomial = orthogonalising_polynomial(gram / norm**2, coefficients, rounding)
    # Entries near 1, as float16 has few bits below 6e-5, and by a power of 2, so that inputs of 16 bits are not rounded again.
    factor = torch.exp2(torch.floor(torch.log2((wide.shape[-2] * wide.shape[-1]) ** 0.5 / norm)))
    result = polynomial @ _rounded(wide * factor, rounding) / (norm * factor)
    return result.mT if transposed else result


def spread_coefficients(coefficients: Coefficients) -> Coefficients:
    """The same steps for A times `GRAM_SPREAD`."""
    return tuple((a, b / GRAM_SPREAD, c / GRAM_SPREAD**2) for a, b, c in coefficients)


def orthogonalising_polynomial(gram: Tensor, coefficients: Coefficients, rounding: torch.dtype) -> Tensor:
    """Gram matrix A₀ [..., m, m] of X₀ -> Q [..., m, m] with Newton-Schulz(X₀) = QX₀."""
    gram = gram * GRAM_SPREAD
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    total = None
    for step, (a, b, c) in enumerate(spread_coefficients(coefficients)):
        high = _rounded(gram, rounding)
        step_polynomial = _rounded(_mirrored(a * identity + b * high + c * (high @ high)), rounding)
        total = step_polynomial if total is None else _rounded(step_polynomial @ total, rounding)
        product = step_polynomial @ high
        if step == 0:
            product = product + step_polynomial @ _rounded(gram - high, rounding)
            high = _rounded(product, rounding)
            gram = high @ step_polynomial + _rounded(product - high, rounding) @ step_polynomial
        else:
            gram = _rounded(_mirrored(product), rounding) @ step_polynomial
        gram = _rounded(_mirrored(gram), rounding)
    return total


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).to(values.dtype)


def _mirrored(matrices: Tensor) -> Tensor:
    """The lower triangle, on both sides: the kernels compute only that of a product that is symmetric."""
    lower = matrices.tril()
    return lower + lower.tril(-1).mT


# ---- backward -------------------------------------------------------------------------------------------------------


def gram_newton_schulz_backward(
    matrices: Tensor,
    output_gradient: Tensor,
    coefficients: Coefficients = COEFFICIENTS,
    multiply: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
) -> Tensor:
    """Gradient of Newton-Schulz by the Gram form, recomputed from the input alone: nothing but the input is stored.

    U = Q(A₀)X₀ is a product with the large matrix once; all other derivatives are of m × m matrices. They are all functions
    of the symmetric A₀, so only the symmetric part of each one's gradient acts, and P, A and Q commute:
    Q̄ ← sym(ŪX₀ᵀ); for each step backwards P̄ = sym(Q̄Q) + 2 sym(Ā·PA), Ā ← PĀP + βP̄ + 2γ sym(P̄A), Q̄ ← sym(PQ̄);
    X̄ = QᵀŪ + 2 sym(Ā)X₀.

    Args:
        matrices: [..., m, n], what was orthogonalised, any float dtype.
        output_gradient: [..., m, n].
        coefficients: (a, b, c) for each step.
        multiply: the product of two batches of contiguous [N, m, m] matrices, for a faster one than `torch.matmul`.

    Returns:
        [..., m, n] in the matrices' dtype, computed in float32 (float64 for float64).
    """
    dtype = torch.float64 if matrices.dtype == torch.float64 else torch.float32
    flat = matrices.reshape(-1, *matrices.shape[-2:]).to(dtype)
    outer = output_gradient.reshape(flat.shape).to(dtype)
    transposed = flat.shape[-2] > flat.shape[-1]
    if transposed:
        flat, outer = flat.mT, outer.mT
    norm = torch.linalg.matrix_norm(flat, keepdim=True)
    start = flat / (norm + NORM_EPSILON)
    grams, steps, products = _polynomial_states(start @ start.mT, coefficients, multiply)
    gram_gradient = _polynomial_backward(_symmetric(outer @ start.mT), grams, steps, products, coefficients, multiply)
    inner = products[-1].mT @ outer + 2.0 * (gram_gradient @ start)
    # X₀ = G / (‖G‖ + ε); where G = 0 its norm has no gradient, and the second term is left out.
    along = (inner * start).sum((-2, -1), keepdim=True)
    inner = (inner - along * flat / norm.where(norm > 0, 1.0)) / (norm + NORM_EPSILON)
    return (inner.mT if transposed else inner).reshape(matrices.shape).to(matrices.dtype)


def _polynomial_states(
    gram: Tensor, coefficients: Coefficients, multiply: Callable[[Tensor, Tensor], Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """A before each step, P of each step, and Q after each step, unrounded."""
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    grams, steps, products = [], [], []
    for a, b, c in coefficients:
        if steps:
            gram = _symmetric(multiply(multiply(steps[-1], gram), steps[-1]))
        step = _symmetric(a * identity + b * gram + c * multiply(gram, gram))
        grams.append(gram)
        steps.append(step)
        products.append(multiply(step, products[-1]) if products else step)
    return grams, steps, products


def _polynomial_backward(
    gradient: Tensor, grams: list[Tensor], steps: list[Tensor], products: list[Tensor], coefficients: Coefficients,
    multiply: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """Symmetric gradient of Q -> symmetric gradient of A₀."""
    gram_gradient = None
    for index in reversed(range(len(coefficients))):
        _, b, c = coefficients[index]
        gram, step = grams[index], steps[index]
        step_gradient = _symmetric(multiply(gradient, products[index - 1])) if index else gradient
        passed_on = 0.0
        if gram_gradient is not None:
            halfway = multiply(step, gram_gradient)  # PĀ, of which ĀPA is (A · PĀ)ᵀ
            step_gradient = step_gradient + 2.0 * _symmetric(multiply(gram, halfway))
            passed_on = multiply(halfway, step)
        gram_gradient = passed_on + b * step_gradient + 2.0 * c * _symmetric(multiply(step_gradient, gram))
        gram_gradient = _symmetric(gram_gradient)
        if index:
            gradient = _symmetric(multiply(step, gradient))
    return gram_gradient


def _symmetric(matrices: Tensor) -> Tensor:
    return 0.5 * (matrices + matrices.mT)
