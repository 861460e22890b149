"""Triton's Muon step as a differentiable PyTorch operator, known to `torch.compile` and `opcheck`."""

from __future__ import annotations

import torch
from torch import Tensor

from lact_asr.kernels.batches import flatten_matrices
from lact_asr.kernels.muon_step import triton_kernels
from lact_asr.kernels.muon_step.reference import rescale_rows
from lact_asr.kernels.newton_schulz import reference as newton_schulz_reference
from lact_asr.kernels.newton_schulz.gram_form import Coefficients
from lact_asr.kernels.newton_schulz.operation import flat, newton_schulz, steps
from lact_asr.kernels.newton_schulz.reference import COEFFICIENTS
from lact_asr.kernels.operators import operator
from lact_asr.kernels.recomputation import gradients_by_recomputation


def muon_step(
    weights: tuple[Tensor, ...], gradients: tuple[Tensor, ...], target_row_norms: tuple[Tensor, ...],
    momenta: tuple[Tensor, ...] | None = None, beta: Tensor | None = None, coefficients: Coefficients = COEFFICIENTS,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None]:  # fmt: skip
    """`reference.muon_step` by Triton for several matrices of one layer, in one sequence of launches.

    Stores only its inputs for the backward pass, which recomputes the rest. A backward pass that is itself differentiated
    takes the reference's.

    Args:
        weights: each [..., m, n] or [..., n, m]; batch dimensions may be shorter than the gradients' or 1.
        gradients: each [..., m, n] or [..., n, m].
        target_row_norms: each [..., rows, 1].
        momenta: M before the step, shaped as the gradients, or None.
        beta: β, broadcastable to [..., 1, 1]; needed with ``momenta``.
        coefficients: of Newton-Schulz.

    Returns:
        (weights after the step, momenta after the step or None).
    """
    if momenta is not None:
        momenta = tuple(torch.addcmul(g, beta, m) for m, g in zip(momenta, gradients, strict=True))
        # Momenta over many chunks are kept in 32 bits, which Newton-Schulz need not be done in. float16 might overflow.
        in_bfloat16 = gradients[0].dtype == torch.bfloat16
        gradients = tuple(m.bfloat16() for m in momenta) if in_bfloat16 else momenta
    leading = gradients[0].shape[:-2]
    flat_weights = [flatten_matrices(weight, leading) for weight in weights]
    flat_gradients = [flatten_matrices(gradient, leading) for gradient in gradients]
    flat_norms = [flatten_matrices(norms, leading)[..., 0].contiguous() for norms in target_row_norms]
    if len({frozenset(gradient.shape[-2:]) for gradient in gradients}) == 1:
        updated = _muon_step(flat_weights, flat_gradients, flat_norms, flat(coefficients))
    else:  # matrices of other sizes cannot share the launches of the small matrices
        updated = [
            _muon_step([weight], [gradient], [norms], flat(coefficients))[0]
            for weight, gradient, norms in zip(flat_weights, flat_gradients, flat_norms, strict=True)
        ]
    return tuple(new.view(g.shape) for new, g in zip(updated, gradients, strict=True)), momenta


@operator("muon_step")
def _muon_step(
    weights: list[Tensor], gradients: list[Tensor], row_norms: list[Tensor], coefficients: list[float]
) -> list[Tensor]:
    return list(triton_kernels.muon_step(tuple(weights), tuple(gradients), tuple(row_norms), steps(coefficients)))


@_muon_step.register_fake
def _(
    weights: list[Tensor], gradients: list[Tensor], row_norms: list[Tensor], coefficients: list[float]
) -> list[Tensor]:
    return [weight.new_empty(gradient.shape) for weight, gradient in zip(weights, gradients, strict=True)]


def _setup_context(ctx, inputs, output) -> None:
    weights, gradients, row_norms, ctx.coefficients = inputs
    ctx.count = len(weights)
    ctx.save_for_backward(*weights, *gradients, *row_norms)


def _backward(ctx, output_gradients: list[Tensor]) -> tuple[list, list, list, None]:
    coefficients = steps(ctx.coefficients)
    # The reference has every derivative; the operator's own backward has one, and is faster.
    orthogonalise = newton_schulz_reference.newton_schulz if torch.is_grad_enabled() else newton_schulz

    def step(weight: Tensor, gradient: Tensor, norms: Tensor) -> Tensor:
        repeats = gradient.shape[0] // weight.shape[0]
        updated = weight.repeat(repeats, 1, 1) + orthogonalise(gradient, coefficients).to(weight.dtype)
        return rescale_rows(updated, norms.repeat(gradient.shape[0] // norms.shape[0], 1)[..., None])

    inputs = ctx.saved_tensors  # once: gradient checkpointing hands them out a single time
    found = [gradients_by_recomputation(step, inputs[i :: ctx.count], [output_gradients[i]]) for i in range(ctx.count)]
    of_weights, of_gradients, of_norms = (list(column) for column in zip(*found, strict=True))
    return of_weights, of_gradients, of_norms, None


_muon_step.register_autograd(_backward, setup_context=_setup_context)
