"""What can be done to a model's layers before training: less memory for more time, or compilation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch._dynamo
import torch.fx.experimental._config
from torch import nn
from transformers import PreTrainedModel


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep only the inputs of blocks and front-end layers for the backward pass, and compute the rest again (Chen et al., arXiv 1604.06174)."""
    # Transformers 5.20 gave it another name, and warns of the old one.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(
        {"use_reentrant": False}
    )  # the reentrant form loses gradients where no input requires one: the first layer's


def compile_in_place(modules: Iterable[nn.Module], backend: str = "inductor") -> None:
    """Let `torch.compile` have each module by itself, for inputs of any length; names of parameters stay.

    Modules of one kind share their code: the first block's compilation serves all. Around blocks are choices that depend on
    values (LayerDrop, padding) and would break a larger graph.

    Args:
        modules: compiled where they are.
        backend: of `torch.compile`; "aot_eager" traces and differentiates without generating code, which is slow on CPUs.
    """
    # DDP's own cutting of graphs into buckets would cut each block in three; blocks overlap with its sums as they are.
    torch._dynamo.config.optimize_ddp = False
    # All modules share one code object: training and validation, padded and whole batches, of blocks and of the front end.
    torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
    # Else sizes that are equal once, such as blocks of a batch and keys of a block, are taken for the same ever after.
    torch.fx.experimental._config.use_duck_shape = False
    for module in modules:
        module.compile(dynamic=True, backend=backend)
