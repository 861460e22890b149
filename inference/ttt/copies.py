"""Copies of parameters that stand in for them while test-time training lasts: one for all, or one for each row of a batch.

A copy shadows its parameter: the module finds it under the same name, and the model's own parameter is never touched. With
one copy a row, a module has weights [B, ...], which PyTorch's modules do not take: their forward passes are replaced as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from lact_asr.evaluation_mode import evaluation_mode
from lact_asr.lact_layer import FastWeightGate, InitialFastWeights
from lact_asr.ttt_names import FEATURE_OFFSET
from lact_asr.wav2vec2_encoder import FrontEndLayer


class Copies(dict[str, Tensor]):
    """What adapts, by name: shaped as the parameters, or [rows, ...]; the feature offset is [rows, C].

    Args:
        model: whose modules find the copies.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model

    def replace(self, tensors: dict[str, Tensor]) -> None:
        """From now on the model computes with these."""
        self.update(tensors)
        for name, tensor in tensors.items():
            if name != FEATURE_OFFSET:
                owner, _, attribute = name.rpartition(".")
                self._model.get_submodule(owner).__dict__[attribute] = tensor  # found before the parameter of that name


@contextmanager
def parameter_copies(
    model: nn.Module, parameters: dict[str, nn.Parameter], rows: int, front_end: nn.Module | None = None
) -> Iterator[Copies]:
    """Inside, ``model`` computes with copies of parameters, from which gradients flow back to these.

    Args:
        model: `HybridASRForCTC` or a Transformers CTC model.
        parameters: of ``model``, by name.
        rows: copies of each; 1 keeps the parameters' own shapes, more put a dimension in front of them.
        front_end: where given, every frame of its output has a vector added, one for each row, which starts at 0
            (what E-BATS adapts, arXiv 2506.07078). It is `Wav2Vec2FrontEnd`, whose features are [B, T, C], or
            Transformers' feature encoder, [B, C, T].

    Yields:
        The copies; each requires a gradient.
    """
    copies, shadowed = Copies(model), []
    owners = {model.get_submodule(name.rpartition(".")[0]) for name in parameters}
    hook = None
    try:
        for name in parameters:
            owner, _, attribute = name.rpartition(".")
            shadowed.append((model.get_submodule(owner), attribute))
        copies.replace({name: _copy(parameter, rows) for name, parameter in parameters.items()})
        for module in owners:
            if rows > 1 and type(module) in _FORWARD_OF_ROWS:
                shadowed.append((module, "forward"))
                module.__dict__["forward"] = functools.partial(_FORWARD_OF_ROWS[type(module)], module)
        if front_end is not None:
            copies[FEATURE_OFFSET] = _zero_offset(front_end, rows)
            hook = front_end.register_forward_hook(functools.partial(_add_offset, copies))
        for tensor in copies.values():
            if not tensor.requires_grad:  # of a frozen parameter
                tensor.requires_grad_()
        yield copies
    finally:
        if hook is not None:
            hook.remove()
        for module, attribute in shadowed:
            module.__dict__.pop(attribute, None)


@contextmanager
def lent(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode and none of its parameters requires a gradient; afterwards all is as it was.

    Flags, modes and torch's random numbers on the CPU (Transformers' encoders draw some in every pass) are put back also
    after an error.
    """
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    random_state = torch.get_rng_state()
    try:
        with evaluation_mode(model):
            model.requires_grad_(False)
            yield
    finally:
        for parameter, requires_grad in flags.items():
            parameter.requires_grad_(requires_grad)
        torch.set_rng_state(random_state)


def _copy(parameter: nn.Parameter, rows: int) -> Tensor:
    """Values of its own, so that writing to it leaves the parameter alone."""
    values = parameter if rows == 1 else parameter.expand(rows, *parameter.shape)
    return values.clone(memory_format=torch.contiguous_format)


def _zero_offset(front_end: nn.Module, rows: int) -> Tensor:
    last_layer = front_end.conv_layers[-1].conv
    return next(iter(last_layer.parameters())).new_zeros(rows, last_layer.out_channels).detach()


def _add_offset(copies: Copies, module: nn.Module, inputs: tuple, output):
    offset = copies[FEATURE_OFFSET]
    if isinstance(output, tuple):
        features, lengths = output
        return features + offset[:, None], lengths
    return output + offset[:, :, None]


def takes_copies_of_rows(model: nn.Module, parameters: dict[str, nn.Parameter]) -> bool:
    """Whether every module that owns one of the parameters can compute with a copy for each row."""
    own_convolutions = {module.conv for module in model.modules() if isinstance(module, FrontEndLayer)}
    owners = {model.get_submodule(name.rpartition(".")[0]) for name in parameters}
    return all(
        type(owner) in _FORWARD_OF_ROWS
        or owner in own_convolutions
        or isinstance(owner, (FastWeightGate, InitialFastWeights))
        for owner in owners
    )


def _spread(values: Tensor, ndim: int, channel_axis: int) -> Tensor:
    """[C] or [B, C] so that it broadcasts to ``ndim`` axes with B first and C at ``channel_axis``."""
    shape = [1] * ndim
    shape[0], shape[channel_axis] = (1 if values.ndim == 1 else len(values)), values.shape[-1]
    return values.view(shape)


def _scale_and_shift(hidden: Tensor, module: nn.Module, channel_axis: int) -> Tensor:
    scale = _spread(module.weight, hidden.ndim, channel_axis).to(hidden.dtype)
    if getattr(module, "bias", None) is None:
        return hidden * scale
    return torch.addcmul(_spread(module.bias, hidden.ndim, channel_axis).to(hidden.dtype), hidden, scale)


def _layer_norm(module: nn.LayerNorm, hidden: Tensor) -> Tensor:
    normalised = functional.layer_norm(hidden, module.normalized_shape, eps=module.eps)
    return _scale_and_shift(normalised, module, channel_axis=-1)


def _rms_norm(module: nn.RMSNorm, hidden: Tensor) -> Tensor:
    return _scale_and_shift(functional.rms_norm(hidden, module.normalized_shape, eps=module.eps), module, -1)


def _group_norm(module: nn.GroupNorm, hidden: Tensor) -> Tensor:
    return _scale_and_shift(functional.group_norm(hidden, module.num_groups, eps=module.eps), module, channel_axis=1)


def _batch_norm(module: nn.BatchNorm1d, hidden: Tensor) -> Tensor:
    normalised = functional.batch_norm(hidden, module.running_mean, module.running_var, eps=module.eps)
    return _scale_and_shift(normalised, module, channel_axis=1)


def _linear(module: nn.Linear, hidden: Tensor) -> Tensor:
    """[B, ..., in] -> [B, ..., out], each row by its own matrix."""
    rows = hidden.flatten(1, -2) @ module.weight.mT
    if module.bias is not None:
        rows = rows + _spread(module.bias, 3, channel_axis=-1)
    return rows.unflatten(1, hidden.shape[1:-1])


def _conv1d(module: nn.Conv1d, hidden: Tensor) -> Tensor:
    """[B, in, T] -> [B, out, T']: all rows as the groups of one convolution."""
    rows, channels, frames = hidden.shape
    weight = module.weight if module.weight.ndim == 4 else module.weight.expand(rows, *module.weight.shape)
    bias = module.bias
    if bias is not None:
        bias = (bias if bias.ndim == 2 else bias.expand(rows, -1)).flatten()
    output = functional.conv1d(
        hidden.reshape(1, rows * channels, frames), weight.flatten(0, 1), bias, module.stride, module.padding,
        module.dilation, rows * module.groups,
    )  # fmt: skip
    return output.view(rows, -1, output.shape[-1])


_FORWARD_OF_ROWS: dict[type, Callable[[nn.Module, Tensor], Tensor]] = {
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.Linear: _linear,
    nn.Conv1d: _conv1d,
}
