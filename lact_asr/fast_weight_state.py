"""What a layer's fast weights are at a moment: the state that a forward pass takes in, updates and hands back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = tuple[Tensor, Tensor, Tensor]  # W0 [B, h, dh, d], W1 [B, h, d, dh], W2 [B, h, dh, d]


@dataclass(frozen=True)
class FastWeightState:
    """The fast weights of one layer for each row of a batch, and Muon's momentum where it is used.

    Attributes:
        weights: W0 [B, h, dh, d], W1 [B, h, d, dh], W2 [B, h, dh, d]; B is 1 before the first update, when every
            row still has the layer's learned initial weights.
        momentum: shaped as ``weights``, or None.
    """

    weights: Weights
    momentum: Weights | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> FastWeightState:
        """A state with ``function`` applied to every tensor."""
        momentum = None if self.momentum is None else tuple(function(tensor) for tensor in self.momentum)
        return FastWeightState(tuple(function(tensor) for tensor in self.weights), momentum)

    def detach(self) -> FastWeightState:
        """The same values, cut from the graph: to carry a state over utterances or chunks without their history."""
        return self.map(Tensor.detach)

    def where(self, row_mask: Tensor, other: FastWeightState) -> FastWeightState:
        """Rows of this state where ``row_mask`` [B] is true, rows of ``other`` elsewhere."""
        mask = row_mask[:, None, None, None]

        def choose(mine: Weights, theirs: Weights) -> Weights:
            return tuple(torch.where(mask, a, b) for a, b in zip(mine, theirs, strict=True))

        momentum = None if self.momentum is None else choose(self.momentum, other.momentum)
        return FastWeightState(choose(self.weights, other.weights), momentum)
