"""What test-time training of an utterance gave, and what the next one may start from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from lact_asr.inference.ttt.optimizers import InnerOptimizer
    from lact_asr.inference.ttt.search import SearchDistribution


@dataclass
class AdaptedState:
    """Where an adaptation starts or ended.

    Attributes:
        weights: what adapts, by name, shaped as the parameters; empty: the model's own.
        optimizers: one a stage, with their moments, or the distribution of a search; empty: fresh ones.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    optimizers: list[InnerOptimizer | SearchDistribution] = field(default_factory=list)


@dataclass
class TTTOutcome:
    """What adaptation gave.

    Attributes:
        logits: [T, V] to be decoded: adapted, or the unadapted ones where adaptation was refused.
        logits_before: [T, V] of the unadapted model.
        losses: the self-supervised loss before each step.
        steps: how many were taken.
        adapted: whether ``logits`` are adapted.
        reason: why not, in a few words; empty where adapted.
        state: where adaptation ended; None unless a start was given.
    """

    logits: Tensor
    logits_before: Tensor
    losses: list[float] = field(default_factory=list)
    steps: int = 0
    adapted: bool = True
    reason: str = ""
    state: AdaptedState | None = None

    def refuse(self, reason: str) -> None:
        """Stay with the unadapted output, unless ``reason`` is empty; the first reason counts."""
        if reason and self.adapted:
            self.adapted, self.reason = False, reason
