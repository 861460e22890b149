"""The lowest layers of the front end, where they do not adapt: they are the same in every pass over an utterance, and run once."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lact_asr.errors import InputError
from lact_asr.ttt_parameters import front_end_of


def layers_below(model: nn.Module, parameters: Iterable[nn.Parameter]) -> list[nn.Module]:
    """The front end's layers below the first that owns one of the parameters; none where the model has no such front end."""
    try:
        layers = front_end_of(model).conv_layers
    except InputError:
        return []
    adapting = set(map(id, parameters))
    return list(itertools.takewhile(lambda layer: adapting.isdisjoint(map(id, layer.parameters())), layers))


def without_layers(parameters: dict[str, nn.Parameter], model: nn.Module, count: int) -> dict[str, nn.Parameter]:
    """Those parameters that do not belong to the lowest ``count`` layers of the front end.

    Raises:
        InputError: the model has no front end of so many layers, or nothing is left.
    """
    if count == 0:
        return parameters
    layers = front_end_of(model).conv_layers
    if count > len(layers):
        raise InputError(f"TTT cannot freeze {count} layers of a front end that has {len(layers)}.")
    frozen = {id(parameter) for layer in layers[:count] for parameter in layer.parameters()}
    left = {name: parameter for name, parameter in parameters.items() if id(parameter) not in frozen}
    if parameters and not left:
        raise InputError(f"All that TTT adapts lies in the {count} layers of the front end that it freezes.")
    return left


@contextmanager
def remembered(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, each layer keeps its last output, and gives it again as long as its inputs are equal.

    Results stay as they are to the last bit, as long as nobody changes the layers' weights.
    """
    layers = list(layers)
    try:
        for layer in layers:
            layer.__dict__["forward"] = functools.partial(_remember, layer, {})
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _remember(layer: nn.Module, memory: dict[str, object], *question: Tensor | None) -> Tensor:
    if "question" in memory and all(map(_same, question, memory["question"])):
        return memory["answer"]
    answer = type(layer).forward(layer, *question)
    if not answer.requires_grad:  # another pass might want derivatives of its own
        memory.update(question=question, answer=answer)
    return answer


def _same(now: Tensor | None, then: Tensor | None) -> bool:
    if now is None or then is None:
        return now is then
    return now is then or torch.equal(now, then)
