"""Backward passes that store only the inputs and compute everything else again, by autograd through the plain reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradients_by_recomputation(
    function: Callable[..., Tensor | Sequence[Tensor]],
    inputs: Sequence[Tensor],
    output_gradients: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Vector-Jacobian product of ``function`` at ``inputs``.

    Inside a backward pass that is itself differentiated (``create_graph=True``) the graph goes back to the given tensors, so
    that derivatives of any order exist: training through a test-time training step needs the second.

    Args:
        function: plain PyTorch, of the inputs in order.
        inputs: tensors; those that do not require a gradient get None.
        output_gradients: one for each output of ``function``, None for zero.

    Returns:
        One gradient for each input, or None.
    """
    create_graph = torch.is_grad_enabled()
    # The operator ran in its inputs' precision; so does this, also where backward() is called under autocast.
    with torch.enable_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        if not create_graph:
            inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs]
        outputs = function(*inputs)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        pairs = [
            (output, gradient)
            for output, gradient in zip(outputs, output_gradients, strict=True)
            if gradient is not None and output.requires_grad
        ]
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        found = iter(
            torch.autograd.grad(
                [output for output, _ in pairs], wanted, [gradient for _, gradient in pairs],
                create_graph=create_graph, allow_unused=True,
            )
            if pairs
            else [None] * len(wanted)
        )  # fmt: skip
        return [next(found) if tensor.requires_grad else None for tensor in inputs]
