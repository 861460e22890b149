"""Triton's Newton-Schulz as a differentiable PyTorch operator, known to `torch.compile` and `opcheck`."""

from __future__ import annotations

import torch
from torch import Tensor

from lact_asr.kernels.newton_schulz import launches, reference
from lact_asr.kernels.newton_schulz.gram_form import Coefficients, gram_newton_schulz_backward
from lact_asr.kernels.newton_schulz.reference import COEFFICIENTS
from lact_asr.kernels.operators import operator
from lact_asr.kernels.recomputation import gradients_by_recomputation


def newton_schulz(matrices: Tensor, coefficients: Coefficients = COEFFICIENTS) -> Tensor:
    """`reference.newton_schulz` by Triton; its backward recomputes in the Gram form and stores only the input.

    A backward pass that is itself differentiated takes the reference's, which has all derivatives.

    Args:
        matrices: [..., m, n], float32, bfloat16 or float16, on a GPU (or anywhere in Triton's interpreter).
        coefficients: (a, b, c) for each step.

    Returns:
        [..., m, n] in the input's dtype.
    """
    return _newton_schulz(matrices, flat(coefficients))


def flat(coefficients: Coefficients) -> list[float]:
    """Operators take lists of floats, no tuples of tuples."""
    return [value for step in coefficients for value in step]


def steps(values: list[float]) -> Coefficients:
    """The inverse of `flat`."""
    return tuple((values[i], values[i + 1], values[i + 2]) for i in range(0, len(values), 3))


@operator("newton_schulz")
def _newton_schulz(matrices: Tensor, coefficients: list[float]) -> Tensor:
    return launches.newton_schulz(matrices, steps(coefficients))


@_newton_schulz.register_fake
def _(matrices: Tensor, coefficients: list[float]) -> Tensor:
    return matrices.new_empty(matrices.shape)


# An operator too, as tracing for `torch.compile` goes through the backward pass with tensors that hold nothing.
@operator("multiply_squares")
def _multiply_squares(left: Tensor, right: Tensor) -> Tensor:
    return launches.multiply_squares(left, right)


@_multiply_squares.register_fake
def _(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape)


def _setup_context(ctx, inputs, output) -> None:
    matrices, ctx.coefficients = inputs
    ctx.save_for_backward(matrices)


def _backward(ctx, output_gradient: Tensor) -> tuple[Tensor | None, None]:
    (matrices,) = ctx.saved_tensors
    return newton_schulz_backward(matrices, output_gradient, steps(ctx.coefficients)), None


def newton_schulz_backward(matrices: Tensor, output_gradient: Tensor, coefficients: Coefficients) -> Tensor | None:
    """The Gram form's backward, or the reference's where this backward is itself differentiated."""
    if torch.is_grad_enabled():
        return gradients_by_recomputation(
            lambda matrices: reference_in_32_bits(matrices, coefficients), [matrices], [output_gradient]
        )[0]
    with torch.autocast(matrices.device.type, enabled=False):  # whoever calls backward() inside of it
        return gram_newton_schulz_backward(matrices, output_gradient, coefficients, _multiply_squares)


def reference_in_32_bits(matrices: Tensor, coefficients: Coefficients) -> Tensor:
    """The reference on inputs of 16 bits, in which it would lose too much: the kernels sum in float32."""
    wide = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
    return reference.newton_schulz(wide, coefficients).to(matrices.dtype)


_newton_schulz.register_autograd(_backward, setup_context=_setup_context)
