"""Which parameters test-time training adapts, and how they are brought back to where they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lact_asr.errors import InputError
from lact_asr.lact_layer import InitialFastWeights

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.BatchNorm1d)
FRONT_END_NAMES = ("front_end", "feature_extractor")  # ours, and Transformers' name for it
OUTPUT_NAMES = ("ctc_head", "lm_head")

PARAMETER_GROUPS = ("fast_weights", "norms", "front_end", "output")


def select_parameters(model: nn.Module, groups: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """The parameters of some groups, by name, each once.

    Args:
        model: `HybridASRForCTC` or a Transformers CTC model.
        groups: of ``PARAMETER_GROUPS``: initial fast weights; scales and shifts of normalisations; the convolutional
            front end; the output layer.

    Raises:
        InputError: an unknown group, or a group that this model does not have.
    """
    selected: dict[str, nn.Parameter] = {}
    for group in groups:
        if group not in PARAMETER_GROUPS:
            raise InputError(f"Unknown parameter group {group!r} for TTT; choose from {', '.join(PARAMETER_GROUPS)}.")
        found = dict(_group_parameters(model, group))
        if not found:
            raise InputError(f"{type(model).__name__} has no parameters in the group {group!r} for TTT to adapt.")
        selected.update(found)
    return selected


def _group_parameters(model: nn.Module, group: str) -> Iterator[tuple[str, nn.Parameter]]:
    for module_name, module in model.named_modules():
        last_name = module_name.rpartition(".")[2]
        belongs = {
            "fast_weights": isinstance(module, InitialFastWeights),
            "norms": isinstance(module, NORMS),
            "front_end": last_name in FRONT_END_NAMES,
            "output": last_name in OUTPUT_NAMES,
        }[group]
        if belongs:
            yield from module.named_parameters(prefix=module_name)


@contextmanager
def borrowed(model: nn.Module, parameters: dict[str, nn.Parameter]) -> Iterator[None]:
    """Inside, only ``parameters`` require gradients and may change; afterwards all is as it was, bit for bit.

    Values, ``requires_grad`` and ``grad`` of every parameter, the modes of all modules and torch's random numbers on
    the CPU (Transformers' encoders draw some in every pass) are put back, also after an error.
    """
    values = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    flags = {parameter: (parameter.requires_grad, parameter.grad) for parameter in model.parameters()}
    modes = {module: module.training for module in model.modules()}
    chosen = {id(parameter) for parameter in parameters.values()}
    random_state = torch.get_rng_state()
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in chosen)
            parameter.grad = None
        model.eval()
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(values[name])
        for parameter, (requires_grad, gradient) in flags.items():
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
        for module, training in modes.items():
            module.training = training
        torch.set_rng_state(random_state)
