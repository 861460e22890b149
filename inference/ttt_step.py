"""What one step of test-time training minimises: objectives by name, their weighted sums, and the passes that they share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lact_asr.inference.ttt_names import parse_loss
from lact_asr.inference.ttt_objectives import (
    class_confusion,
    generalised_entropy,
    suta_objective,
    tent_objective,
    view_consistency,
)
from lact_asr.masking import span_mask


@dataclass(frozen=True)
class Rows:
    """Utterances that are adapted at once.

    Attributes:
        input_values: [B, samples].
        attention_mask: [B, samples], 1 for real samples; None where all are.
        lengths: frames of each row.
    """

    input_values: Tensor
    attention_mask: Tensor | None
    lengths: list[int] = field(default_factory=list)


class StepView:
    """What the objectives of one step may look at. A pass is run when first asked for, and shared.

    Args:
        model: called as ``model(input_values, attention_mask=…)``.
        rows: the utterances, or one piece of them.
        teacher: [B, T, D], last hidden states of the unadapted, unmasked pass; None where no objective asks for them.
        draw_mask: draws a mask [B, T] bool, another at each call.
        blank_id: the CTC blank.
    """

    def __init__(
        self, model: nn.Module, rows: Rows, teacher: Tensor | None, draw_mask: Callable[[], Tensor], blank_id: int
    ) -> None:
        self.model, self.rows, self.teacher, self.blank_id = model, rows, teacher, blank_id
        self._draw_mask, self._masks = draw_mask, []

    @functools.cached_property
    def logits(self) -> list[Tensor]:
        """[T, V] of each row, with gradients."""
        return self._cut(self.model(self.rows.input_values, attention_mask=self.rows.attention_mask).logits)

    def mask(self, number: int) -> Tensor:
        """One of this step's masks, [B, T] bool; number 0 is that of masked prediction."""
        while len(self._masks) <= number:
            self._masks.append(self._draw_mask())
        return self._masks[number]

    def masked_logits(self, number: int) -> list[Tensor]:
        """[T, V] of each row under one of the masks, with gradients."""
        output = self.model(
            self.rows.input_values, attention_mask=self.rows.attention_mask, masked_frames=self.mask(number)
        )
        return self._cut(output.logits)

    def _cut(self, logits: Tensor) -> list[Tensor]:
        return [row[:length] for row, length in zip(logits, self.rows.lengths, strict=True)]


def _of_logits(function: Callable[[Tensor, int], Tensor]) -> Callable[[StepView], Tensor]:
    """An objective of each row's logits and the blank, as one of the step's view: [B]."""
    return lambda view: torch.stack([function(logits, view.blank_id) for logits in view.logits])


def _masked_prediction(view: StepView) -> Tensor:
    rows = view.rows
    return view.model.masked_prediction_losses(
        rows.input_values, rows.attention_mask, view.mask(0), teacher=view.teacher
    )


def _consistency(view: StepView) -> Tensor:
    pairs = zip(view.masked_logits(0), view.masked_logits(1), strict=True)
    return torch.stack([view_consistency(first, second) for first, second in pairs])


@dataclass(frozen=True)
class Objective:
    """A self-supervised loss.

    Attributes:
        losses: of a step's view, [B].
        masks: whether it hides frames, which a model must know how to do.
        head: whether it needs the masked-prediction head.
        parameters: what adapts, unless the user says otherwise.
        learning_rate: of AdamW, likewise.
    """

    losses: Callable[[StepView], Tensor]
    masks: bool = False
    head: bool = False
    parameters: tuple[str, ...] = ("norms", "front_end")
    learning_rate: float = 2e-3


# The rates: of "entropy" chosen on development data (docs/results.md), of the others not measured on a trained model yet.
OBJECTIVES: dict[str, Objective] = {
    "masked_prediction": Objective(
        _masked_prediction, masks=True, head=True, parameters=("norms",), learning_rate=1e-3
    ),
    "entropy": Objective(_of_logits(suta_objective)),
    "tent": Objective(_of_logits(lambda logits, _: tent_objective(logits)), parameters=("norms",)),
    "class_confusion": Objective(_of_logits(lambda logits, _: class_confusion(logits.float()))),
    "generalised_entropy": Objective(_of_logits(generalised_entropy)),
    "consistency": Objective(_consistency, masks=True),
}


@dataclass(frozen=True)
class WeightedSum:
    """Σ weight · objective, as written in ``loss_type``: ``entropy``, or ``masked_prediction+0.3*entropy``.

    Attributes:
        terms: (weight, objective) in the order written; the first decides the defaults.
    """

    terms: tuple[tuple[float, Objective], ...]

    @classmethod
    def parse(cls, text: str) -> WeightedSum:
        """What `lact_asr.inference.ttt_names.parse_loss` reads; raises as it does."""
        return cls(tuple((weight, OBJECTIVES[name]) for weight, name in parse_loss(text)))

    @property
    def masks(self) -> bool:
        """Whether any objective hides frames."""
        return any(objective.masks for _, objective in self.terms)

    @property
    def head(self) -> bool:
        """Whether any objective needs the masked-prediction head."""
        return any(objective.head for _, objective in self.terms)

    def losses(self, view: StepView) -> Tensor:
        """[B] float32 with gradients."""
        return sum(weight * objective.losses(view) for weight, objective in self.terms)


def draw_row_masks(
    lengths: list[int], frames: int, probability: float, span: int, generators: list[torch.Generator], device
) -> Tensor:
    """One mask [B, frames] bool; each row draws from its own generator, as it would alone."""
    masks = [
        span_mask(torch.tensor([length]), frames, probability, span, generator)
        for length, generator in zip(lengths, generators, strict=True)
    ]
    return torch.cat(masks).to(device)
