"""Which parameters test-time training adapts, and the learning rates that meta-training finds for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lact_asr.errors import InputError
from lact_asr.lact_layer import InitialFastWeights
from lact_asr.ttt_names import FEATURE_OFFSET, PARAMETER_GROUPS

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.BatchNorm1d)
FRONT_END_NAMES = ("front_end", "feature_extractor")  # ours, and Transformers' name for it
PROJECTION_NAMES = ("feature_norm", "feature_projection")  # in Transformers' the second holds both
OUTPUT_NAMES = ("ctc_head", "lm_head")
BIASES_ELSEWHERE = (*FRONT_END_NAMES, *OUTPUT_NAMES, "masked_prediction")


def select_parameters(model: nn.Module, groups: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """The parameters of some groups, by name, each once.

    Args:
        model: `HybridASRForCTC` or a Transformers CTC model.
        groups: of ``PARAMETER_GROUPS``: initial fast weights; scales and shifts of normalisations; the convolutional
            front end; its projection to the encoder's width; biases of the encoder (BitFit, arXiv 2106.10199); the
            output layer. ``FEATURE_OFFSET`` is passed over, as the model has no such parameter.

    Raises:
        InputError: an unknown group, or a group that this model does not have.
    """
    selected: dict[str, nn.Parameter] = {}
    for group in groups:
        if group == FEATURE_OFFSET:
            continue
        if group not in PARAMETER_GROUPS:
            known = ", ".join((*PARAMETER_GROUPS, FEATURE_OFFSET))
            raise InputError(f"Unknown parameter group {group!r} for TTT; choose from {known}.")
        found = dict(_group_parameters(model, group))
        if not found:
            raise InputError(f"{type(model).__name__} has no parameters in the group {group!r} for TTT to adapt.")
        selected.update(found)
    return selected


def available_groups(model: nn.Module, groups: tuple[str, ...]) -> tuple[str, ...]:
    """Those of some groups that a model has (Wav2Vec2-BERT has no convolutional front end); all of them where it has none."""
    found = tuple(group for group in groups if group == FEATURE_OFFSET or any(_group_parameters(model, group)))
    return found or groups


def front_end_of(model: nn.Module) -> nn.Module:
    """The convolutional front end.

    Raises:
        InputError: this model has none.
    """
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in FRONT_END_NAMES:
            return module
    raise InputError(f"{type(model).__name__} has no convolutional front end for TTT to adapt.")


@contextmanager
def output_features(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, a list gets the front end's output [B, T, C] of each pass.

    Raises:
        InputError: this model has no convolutional front end.
    """
    captured: list[Tensor] = []

    def capture(module: nn.Module, inputs: tuple, output: Tensor | tuple[Tensor, Tensor]) -> None:
        # Ours gives features [B, T, C] and lengths, Transformers' [B, C, T].
        captured.append(output[0] if isinstance(output, tuple) else output.mT)

    hook = front_end_of(model).register_forward_hook(capture)
    try:
        yield captured
    finally:
        hook.remove()


def _group_parameters(model: nn.Module, group: str) -> Iterator[tuple[str, nn.Parameter]]:
    if group == "biases":
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and not set(name.split(".")) & set(BIASES_ELSEWHERE):
                yield name, parameter
        return
    for module_name, module in model.named_modules():
        last_name = module_name.rpartition(".")[2]
        belongs = {
            "fast_weights": isinstance(module, InitialFastWeights),
            "norms": isinstance(module, NORMS),
            "front_end": last_name in FRONT_END_NAMES,
            "projection": last_name in PROJECTION_NAMES,
            "output": last_name in OUTPUT_NAMES,
        }[group]
        if belongs:
            yield from module.named_parameters(prefix=module_name)


class LearnedRates(nn.Module):
    """A positive learning rate for each tensor that adapts, and the output's temperature after the step; kept as logarithms.

    Args:
        model: whose parameters adapt.
        groups: as for `select_parameters`; ``FEATURE_OFFSET`` has a rate too.
        initial: all of them at first.
    """

    def __init__(self, model: nn.Module, groups: tuple[str, ...], initial: float) -> None:
        super().__init__()
        self.names = (*select_parameters(model, groups), *({FEATURE_OFFSET} & set(groups)))
        self.initial = initial
        self.log_rates = nn.Parameter(torch.empty(len(self.names)))
        self.log_temperature = nn.Parameter(torch.empty(()))

    def forward(self) -> dict[str, Tensor]:
        """Name -> rate, a scalar."""
        return dict(zip(self.names, self.log_rates.exp().unbind(), strict=True))
