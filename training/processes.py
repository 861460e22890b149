"""What several processes share: requests to stop, means of what each has seen, equal starts, and states that each holds a part of (FSDP2)."""

from __future__ import annotations

from copy import deepcopy
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

from lact_asr.errors import InputError
from lact_asr.modeling_hybrid_asr import HybridASRForCTC
from lact_asr.training.training_losses import TrainingLosses

PATIENCE = timedelta(hours=3)  # the main process validates alone, for as long as it takes

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
# A parameter that no gradient has reached yet has no state.
_WHOLE_WITH_GAPS = StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)


def cpu_process_group(accelerator: Accelerator) -> torch.distributed.ProcessGroup | None:
    """A gloo group for numbers on the CPU, so that asking does not wait for queued work of a GPU; None for a single process."""
    return torch.distributed.new_group(backend="gloo", timeout=PATIENCE) if accelerator.num_processes > 1 else None


def largest(number: int, group: torch.distributed.ProcessGroup | None) -> int:
    """Of each process's number, with a `cpu_process_group`; every process must take part."""
    if group is None:
        return number
    numbers = torch.tensor([number])
    torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX, group)
    return int(numbers)


def require_equal(facts: str, name: str) -> None:
    """Refuse to go on where processes do not see the same: each would take its share of something else.

    Args:
        facts: of this process; every process must take part.
        name: what they are of.

    Raises:
        InputError: on every process, where they differ.
    """
    if len(set(gather_object([facts]))) > 1:
        raise InputError(
            f"The processes see different {name}: files differ between machines, or one could not be read for a moment; "
            "start the run again."
        )


def mean_over_processes(accelerator: Accelerator, values: dict[str, float]) -> dict[str, float]:
    """Means of each process's values; every process must take part, with the same names."""
    own = torch.tensor(list(values.values()), dtype=torch.float64, device=accelerator.device)
    means = accelerator.reduce(own, reduction="mean")
    return dict(zip(values, means.tolist(), strict=True))


def start_from_the_main_process(model: nn.Module, accelerator: Accelerator) -> None:
    """Move the model to its device, and give every process the main one's weights.

    What each does before (random weights, warm start) depends on its own seed. FSDP2 would put a model together from parts of
    different ones.
    """
    model.to(accelerator.device)
    if accelerator.num_processes > 1:
        for tensor in model.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)


def whole_model(losses: TrainingLosses) -> HybridASRForCTC | None:
    """The model with all of its weights, to validate and to save.

    Every process must take part. Where each holds a part, the main one gets a copy and the others None.
    """
    if not isinstance(losses, FSDPModule):
        return losses.model
    state = get_model_state_dict(losses, options=_WHOLE)
    if not state:  # only the main process gets anything
        return None
    with torch.device("meta"):  # no weights are drawn: the random generator stays where training needs it
        model = HybridASRForCTC(deepcopy(losses.model.config))
    model.load_state_dict(_without_prefix(state), assign=True)
    return model.to(next(losses.parameters()).device)


def model_state(losses: TrainingLosses) -> dict[str, torch.Tensor]:
    """Name -> whole weight of the model; every process must take part, and with parts only the main one gets it."""
    if not isinstance(losses, FSDPModule):
        return losses.model.state_dict()
    return _without_prefix(get_model_state_dict(losses, options=_WHOLE))


def optimizer_state(losses: TrainingLosses, optimizer: torch.optim.Optimizer) -> dict:
    """The optimiser's state dictionary, in the form of a single process: likewise."""
    if not isinstance(losses, FSDPModule):
        return optimizer.state_dict()
    state = get_optimizer_state_dict(losses, optimizer, options=_WHOLE)
    if not state:
        return state
    numbers = {name: number for number, name in enumerate(_names_in_order(losses, optimizer))}
    return _renamed(state, numbers)


def load_states(
    losses: TrainingLosses, optimizer: torch.optim.Optimizer, model_state: dict, optimizer_state: dict
) -> None:
    """Undo `model_state` and `optimizer_state`, whichever processes they came from; every process gives all of it.

    Raises:
        RuntimeError, ValueError: they are of another model or optimiser.
    """
    if not isinstance(losses, FSDPModule):
        losses.model.load_state_dict(model_state)
        optimizer.load_state_dict(optimizer_state)
        return
    set_model_state_dict(losses, {f"model.{name}": value for name, value in model_state.items()}, options=_WHOLE)
    sizes = [
        [len(group["params"]) for group in groups]
        for groups in (optimizer_state["param_groups"], optimizer.param_groups)
    ]
    if sizes[0] != sizes[1]:
        raise ValueError(f"groups of {sizes[0]} parameters do not fit an optimiser with groups of {sizes[1]}")
    names = dict(enumerate(_names_in_order(losses, optimizer)))
    set_optimizer_state_dict(losses, optimizer, _renamed(optimizer_state, names), options=_WHOLE_WITH_GAPS)


def _without_prefix(state: dict) -> dict:
    return {name.removeprefix("model."): value for name, value in state.items()}


def _names_in_order(losses: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimiser's parameters in its order, by which a plain state dictionary numbers them."""
    names = {id(parameter): name for name, parameter in losses.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _renamed(state: dict, new: dict) -> dict:
    """An optimiser's state dictionary whose parameters go by other names or numbers."""
    groups = [{**group, "params": [new[key] for key in group["params"]]} for group in state["param_groups"]]
    return {"state": {new[key]: value for key, value in state["state"].items()}, "param_groups": groups}
