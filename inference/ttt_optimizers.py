"""Optimisers of test-time training, none of which lets rows of a batch see each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lact_asr.muon_optimizer import MuonAdamW


def make_ttt_optimizer(
    name: str, copies: dict[str, Tensor], parameters: dict[str, nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    """An optimiser without weight decay for the copies of parameters.

    Args:
        name: of `lact_asr.inference.ttt_names.OPTIMIZERS`: "adamw"; "sgd", without momentum; "muon", which orthogonalises the gradients of matrices (and of the fast weights,
            a matrix for each head) and leaves vectors and convolutions to AdamW.
        copies: leaf tensors, shaped as the parameters or with the rows of a batch in front.
        parameters: the model's own, by the same names; a copy without a parameter is a vector for each row.
        learning_rate: of all.
    """
    if name == "sgd":
        return torch.optim.SGD(copies.values(), lr=learning_rate)
    if name == "adamw":
        return torch.optim.AdamW(copies.values(), lr=learning_rate, weight_decay=0.0)
    matrices = [copy for key, copy in copies.items() if key in parameters and _is_matrix(key, parameters[key])]
    chosen = {id(copy) for copy in matrices}
    rest = [copy for copy in copies.values() if id(copy) not in chosen]
    groups = [{"params": params, "muon": muon} for params, muon in ((matrices, True), (rest, False)) if params]
    return MuonAdamW(groups, lr=learning_rate, weight_decay=0.0)


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 or (parameter.ndim == 3 and ".fast_weights." in f".{name}")
