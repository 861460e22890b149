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

from lact_asr.lact_layer import InitialFastWeights
from lact_asr.wav2vec2_encoder import FrontEndLayer


@contextmanager
def feature_offset(front_end: nn.Module, rows: int) -> Iterator[Tensor]:
    """Inside, every frame of the front end's output has a vector added, one for each row, which starts at 0 and can learn.

    One additive vector there is what E-BATS adapts (arXiv 2506.07078).

    Args:
        front_end: `Wav2Vec2FrontEnd`, whose features are [B, T, C], or Transformers' feature encoder, [B, C, T].
        rows: vectors.

    Yields:
        The vectors [rows, C], a leaf tensor that requires gradients.
    """
    last_layer = front_end.conv_layers[-1].conv
    weight = next(iter(last_layer.parameters()))
    offset = torch.zeros(rows, last_layer.out_channels, dtype=weight.dtype, device=weight.device, requires_grad=True)

    def add(module: nn.Module, inputs: tuple, output):
        if isinstance(output, tuple):
            features, lengths = output
            return features + offset[:, None], lengths
        return output + offset[:, :, None]

    hook = front_end.register_forward_hook(add)
    try:
        yield offset
    finally:
        hook.remove()


@contextmanager
def parameter_copies(model: nn.Module, parameters: dict[str, nn.Parameter], rows: int) -> Iterator[dict[str, Tensor]]:
    """Inside, ``model`` computes with copies, and nothing but them requires a gradient; afterwards all is as it was.

    Flags, gradients and modes of the model and torch's random numbers on the CPU (Transformers' encoders draw some in
    every pass) are put back too, also after an error. The model is in evaluation mode inside.

    Args:
        model: `HybridASRForCTC` or a Transformers CTC model.
        parameters: of ``model``, by name.
        rows: copies of each; 1 keeps the parameters' own shapes, more put a dimension in front of them.

    Yields:
        The copies, leaf tensors that require gradients: shaped as the parameters, or [rows, ...].
    """
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    modes = {module: module.training for module in model.modules()}
    random_state = torch.get_rng_state()
    copies, shadowed = {}, []
    try:
        model.requires_grad_(False).eval()
        for name, parameter in parameters.items():
            values = parameter.detach() if rows == 1 else parameter.detach().expand(rows, *parameter.shape)
            copies[name] = values.clone(memory_format=torch.contiguous_format).requires_grad_()
            owner, _, attribute = name.rpartition(".")
            module = model.get_submodule(owner)
            shadowed.append((module, attribute))
            module.__dict__[attribute] = copies[name]  # found before the parameter of that name
            if rows > 1 and type(module) in _FORWARD_OF_ROWS and "forward" not in module.__dict__:
                shadowed.append((module, "forward"))
                module.__dict__["forward"] = functools.partial(_FORWARD_OF_ROWS[type(module)], module)
        yield copies
    finally:
        for module, attribute in shadowed:
            del module.__dict__[attribute]
        for parameter, requires_grad in flags.items():
            parameter.requires_grad_(requires_grad)
        for module, training in modes.items():
            module.training = training
        torch.set_rng_state(random_state)


def takes_copies_of_rows(model: nn.Module, parameters: dict[str, nn.Parameter]) -> bool:
    """Whether every module that owns one of the parameters can compute with a copy for each row."""
    own_convolutions = {module.conv for module in model.modules() if isinstance(module, FrontEndLayer)}
    owners = {model.get_submodule(name.rpartition(".")[0]) for name in parameters}
    return all(
        type(owner) in _FORWARD_OF_ROWS or owner in own_convolutions or isinstance(owner, InitialFastWeights)
        for owner in owners
    )


def _spread(values: Tensor, ndim: int, channel_axis: int) -> Tensor:
    """[C] or [B, C] so that it broadcasts to ``ndim`` axes with B first and C at ``channel_axis``."""
    shape = [1] * ndim
    shape[0], shape[channel_axis] = (1 if values.ndim == 1 else len(values)), values.shape[-1]
    return values.view(shape)


def _scale_and_shift(hidden: Tensor, module: nn.Module, channel_axis: int) -> Tensor:
    for combine, values in ((torch.mul, module.weight), (torch.add, getattr(module, "bias", None))):
        if values is not None:
            hidden = combine(hidden, _spread(values, hidden.ndim, channel_axis).to(hidden.dtype))
    return hidden


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
