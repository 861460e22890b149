"""Newton-Schulz in PyTorch with a backward pass of its own, two thirds of autograd's: what the torch backend runs.

For a step Y = aX + PX with P = bA + cA² and A = XXᵀ autograd's backward pass multiplies six times. A and P are symmetric and
only the symmetric part of their gradients acts, so that four products do: with S = ȲXᵀ + XȲᵀ,
X̄ = aȲ + PȲ + (bS + c(SA + (SA)ᵀ))X.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lact_asr.kernels.newton_schulz import reference
from lact_asr.kernels.newton_schulz.reference import COEFFICIENTS
from lact_asr.kernels.recomputation import gradients_by_recomputation


def newton_schulz(matrices: Tensor, coefficients: tuple[tuple[float, float, float], ...] = COEFFICIENTS) -> Tensor:
    """`reference.newton_schulz`, the same arguments and results; A and P of each step are stored where a gradient is wanted.

    A compiler gets the plain steps: it derives their backward pass itself, and takes no `torch.autograd.Function` inside a loop.
    """
    steps = reference.steps if torch.compiler.is_compiling() else _steps
    return reference.newton_schulz(matrices, coefficients, steps=steps)


def _steps(iterate: Tensor, coefficients: tuple[tuple[float, float, float], ...]) -> Tensor:
    return _Steps.apply(iterate, coefficients)


class _Steps(torch.autograd.Function):
    """`reference.steps` of matrices [N, m, n]."""

    @staticmethod
    def forward(ctx, iterate: Tensor, coefficients: tuple[tuple[float, float, float], ...]) -> Tensor:
        stored = []
        for a, b, c in coefficients:
            gram = iterate @ iterate.mT
            polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            stored += [iterate, gram, polynomial]
            iterate = torch.baddbmm(iterate, polynomial, iterate, beta=a)
        ctx.save_for_backward(*stored)
        ctx.coefficients = coefficients
        return iterate

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, None]:
        stored = ctx.saved_tensors  # once: gradient checkpointing hands them out a single time
        if torch.is_grad_enabled():  # whoever differentiates this backward pass needs a graph back to the input
            plain = functools.partial(reference.steps, coefficients=ctx.coefficients)
            return gradients_by_recomputation(plain, stored[:1], [gradient])[0], None
        with torch.autocast(gradient.device.type, enabled=False):  # the forward pass's precision, not the caller's
            for step, (a, b, c) in reversed([*enumerate(ctx.coefficients)]):
                iterate, gram, polynomial = stored[3 * step : 3 * step + 3]
                outer = gradient @ iterate.mT
                outer = outer + outer.mT
                product = outer @ gram
                gram_gradient = (product + product.mT).mul_(c).add_(outer, alpha=b)
                gradient = torch.baddbmm(gradient, polynomial, gradient, beta=a).baddbmm_(gram_gradient, iterate)
        return gradient, None
