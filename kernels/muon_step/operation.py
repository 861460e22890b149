"""Triton's Muon step as a differentiable PyTorch operator, known to `torch.compile` and `opcheck`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lact_asr.kernels.batches import flatten_matrices
from lact_asr.kernels.muon_step import triton_kernels
from lact_asr.kernels.muon_step.reference import rescale_rows
from lact_asr.kernels.newton_schulz.gram_form import Coefficients
from lact_asr.kernels.newton_schulz.operation import flat, newton_schulz, reference_in_32_bits, steps
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
    coefficients, count = steps(ctx.coefficients), ctx.count
    # The reference has every derivative; the operator's own backward has one, and is faster.
    orthogonalise = reference_in_32_bits if torch.is_grad_enabled() else newton_schulz

    def step(weight: Tensor, update: Tensor, norms: Tensor) -> Tensor:
        updated = weight.repeat(update.shape[0] // weight.shape[0], 1, 1) + update.to(weight.dtype)
        return rescale_rows(updated, norms.repeat(update.shape[0] // norms.shape[0], 1)[..., None])

    def step_all(*inputs: Tensor) -> list[Tensor]:
        weights, gradients, norms = (inputs[start : start + count] for start in range(0, len(inputs), count))
        updates = _together(gradients, lambda matrices: orthogonalise(matrices, coefficients))
        return [step(*of_one) for of_one in zip(weights, updates, norms, strict=True)]

    inputs = ctx.saved_tensors  # once: gradient checkpointing hands them out a single time
    found = gradients_by_recomputation(step_all, inputs, output_gradients)
    return found[:count], found[count : 2 * count], found[2 * count :], None


def _together(matrices: Sequence[Tensor], function: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """A function of matrices [N, m, n] or [N, n, m] that commutes with transposing, of all in one sequence of launches."""
    tall = [matrix.shape[-2] > matrix.shape[-1] for matrix in matrices]
    wide = [matrix.mT if is_tall else matrix for matrix, is_tall in zip(matrices, tall, strict=True)]
    results = function(torch.cat(wide)).split([len(matrix) for matrix in wide])
    return [result.mT if is_tall else result for result, is_tall in zip(results, tall, strict=True)]


_muon_step.register_autograd(_backward, setup_context=_setup_context)
