"""What one step of test-time training minimises: objectives by name, their weighted sums, and the passes that they share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lact_asr.inference.alignment.ctc_paths import FindPath, collapse_path
from lact_asr.inference.ttt.feature_objectives import (
    coherent_entropy,
    e_bats_objective,
    utterance_alignment,
)
from lact_asr.inference.ttt.objectives import (
    at_least_float32,
    class_confusion,
    confidence_entropy,
    generalised_entropy,
    spoken_entropy,
    suta_objective,
    tent_objective,
    view_consistency,
)
from lact_asr.inference.ttt.pseudo_labels import pseudo_label_loss
from lact_asr.inference.ttt.statistics import FeatureStatistics
from lact_asr.masking import span_mask
from lact_asr.ttt_names import FEATURE_OFFSET, parse_loss
from lact_asr.ttt_parameters import output_features


@dataclass(frozen=True)
class Rows:
    """Utterances that are adapted at once.

    Attributes:
        input_values: [B, samples].
        attention_mask: [B, samples], 1 for real samples; None where all are.
        lengths: frames of each row.
        teacher: [B, T, D], last hidden states of the unadapted, unmasked pass; None where no objective asks for them.
        pseudo_labels: for each row the transcripts, [L] int64 each, that `pseudo_label_loss` aims at; empty: the greedy ones.
    """

    input_values: Tensor
    attention_mask: Tensor | None
    lengths: list[int] = field(default_factory=list)
    teacher: Tensor | None = None
    pseudo_labels: list[list[Tensor]] = field(default_factory=list)


@dataclass(frozen=True)
class Guides:
    """What some objectives need beside the model and the utterance.

    Attributes:
        find_path: from logits [T, V] to a decoder's path [T]; None: the greedy path.
        statistics: of features in training.
        text_ids: int64, the classes that spell text, for `lact_asr.inference.ttt.safeguards`; None: all but the blank.
    """

    find_path: FindPath | None = None
    statistics: FeatureStatistics | None = None
    text_ids: Tensor | None = None


class StepView:
    """What the objectives of one step may look at. A pass is run when first asked for, and shared.

    Args:
        model: called as ``model(input_values, attention_mask=…)``.
        rows: the utterances, or one piece of them.
        teacher: [B, T, D], last hidden states of the unadapted, unmasked pass; None where no objective asks for them.
        draw_mask: draws a mask [B, T] bool, another at each call.
        blank_id: the CTC blank.
        shufflers: for the control whose targets are shuffled, each row's source of randomness.
        logits: [B, T, V] of the unmasked pass, where it has been run already.
        guides: what some objectives need.
    """

    def __init__(
        self, model: nn.Module, rows: Rows, teacher: Tensor | None, draw_mask: Callable[[], Tensor], blank_id: int,
        shufflers: list[torch.Generator] | None = None, logits: Tensor | None = None, guides: Guides = Guides(),
    ) -> None:  # fmt: skip
        self.model, self.rows, self.blank_id, self.shufflers = model, rows, blank_id, shufflers
        self._teacher, self._draw_mask, self._masks, self._logits = teacher, draw_mask, [], logits
        self.guides = guides

    @property
    def teacher(self) -> Tensor | None:
        """[B, T, D]; with shuffled targets each row's frames are in another order."""
        if self._teacher is None or self.shufflers is None:
            return self._teacher
        rows = self._cut(self._teacher)
        return pad_sequence([row[self.order(index)] for index, row in enumerate(rows)], batch_first=True)

    def order(self, row: int) -> Tensor:
        """A random order of a row's frames."""
        order = torch.randperm(self.rows.lengths[row], generator=self.shufflers[row])
        return order.to(self.rows.input_values.device)

    @functools.cached_property
    def logits(self) -> list[Tensor]:
        """[T, V] of each row, with gradients."""
        if self._logits is None:
            self._logits = self.model(self.rows.input_values, attention_mask=self.rows.attention_mask).logits
        return self._cut(self._logits)

    @functools.cached_property
    def observed(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """(logits [T, V], features [T, C], hidden states [L, T, D]) of each row, with gradients, by one pass."""
        with output_features(self.model) as captured:
            output = self.model(
                self.rows.input_values, attention_mask=self.rows.attention_mask, output_hidden_states=True
            )
        self._logits = output.logits if self._logits is None else self._logits
        hidden_states = torch.stack(output.hidden_states, dim=1)  # [B, L, T, D]
        by_row = [hidden[:, :length] for hidden, length in zip(hidden_states, self.rows.lengths, strict=True)]
        return self._cut(output.logits), self._cut(captured[0]), by_row

    def path(self, row: int) -> Tensor | None:
        """[T] int64, a decoder's path through the current logits; None without a decoder."""
        find = self.guides.find_path
        return None if find is None else find(self.logits[row])

    def pseudo_labels(self, row: int) -> list[Tensor]:
        """The transcripts, [L] int64 each, that a row is to learn."""
        if self.rows.pseudo_labels:
            return self.rows.pseudo_labels[row]
        return [collapse_path(self.logits[row].argmax(-1), self.blank_id)]

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

    def _cut(self, frames: Tensor) -> list[Tensor]:
        return [row[:length] for row, length in zip(frames, self.rows.lengths, strict=True)]


def _of_logits(
    function: Callable[..., Tensor], **aids: Callable[[StepView, int], object]
) -> Callable[[StepView], Tensor]:
    """An objective of each row's logits and the blank, and of further arguments for each row, as one of the step's view: [B]."""

    def losses(view: StepView) -> Tensor:
        functions = [
            functools.partial(function, blank_id=view.blank_id, **{name: aid(view, row) for name, aid in aids.items()})
            for row in range(len(view.logits))
        ]
        if view.shufflers is not None:
            functions = [_with_shuffled_gradient(function, view.order(row)) for row, function in enumerate(functions)]
        return torch.stack([function(logits) for function, logits in zip(functions, view.logits, strict=True)])

    return losses


def _with_shuffled_gradient(function: Callable[[Tensor], Tensor], order: Tensor) -> Callable[[Tensor], Tensor]:
    """The same value, but each frame of the logits [T, V] gets the gradient of another."""

    def shuffled(logits: Tensor) -> Tensor:
        leaf = logits.detach().requires_grad_()
        value = function(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
        surrogate = (gradient[order] * logits).sum()
        return value.detach() + surrogate - surrogate.detach()

    return shuffled


def _of_features(function: Callable[..., Tensor], *wanted: str) -> Callable[[StepView], Tensor]:
    """An objective of some of each row's logits, features and hidden_states, of blank_id and source, as one of the view: [B]."""

    def losses(view: StepView) -> Tensor:
        common = {"blank_id": view.blank_id, "source": view.guides.statistics}
        rows = [
            {"logits": logits, "features": features, "hidden_states": hidden_states, **common}
            for logits, features, hidden_states in zip(*view.observed, strict=True)
        ]
        return torch.stack([function(**{name: row[name] for name in wanted}) for row in rows])

    return losses


def _masked_prediction(view: StepView) -> Tensor:
    rows = view.rows
    return view.model.masked_prediction_losses(
        rows.input_values, rows.attention_mask, view.mask(0), teacher=view.teacher
    )


def _consistency(view: StepView) -> Tensor:
    first, second = view.masked_logits(0), view.masked_logits(1)
    if view.shufflers is not None:
        second = [logits[view.order(row)] for row, logits in enumerate(second)]
    return torch.stack([view_consistency(*pair) for pair in zip(first, second, strict=True)])


@dataclass(frozen=True)
class Objective:
    """A self-supervised loss.

    Attributes:
        losses: of a step's view, [B].
        masks: whether it hides frames, which a model must know how to do.
        head: whether it needs the masked-prediction head.
        features: whether it looks at the front end's features.
        whole: whether it needs the utterance in one piece.
        statistics: whether it needs those of training.
        parameters: what adapts, unless the user says otherwise.
        learning_rate: of AdamW, likewise.
        constant_updates, frozen_layers: what a step on these parameters leaves out, likewise; see `TTTSettings`.
        max_entropy: beyond which output is too uncertain to learn from, likewise.
    """

    losses: Callable[[StepView], Tensor]
    masks: bool = False
    head: bool = False
    features: bool = False
    whole: bool = False
    statistics: bool = False
    parameters: tuple[str, ...] = ("norms", "front_end")
    learning_rate: float = 2e-3
    constant_updates: bool = False
    frozen_layers: int = 0
    max_entropy: float = 1.0


# The rates: of "entropy" chosen on development data (docs/results/ttt_step.md), of the others not measured on a trained model yet.
OBJECTIVES: dict[str, Objective] = {
    "masked_prediction": Objective(
        _masked_prediction, masks=True, head=True, parameters=("norms",), learning_rate=1e-3
    ),
    # The cheapest step gave the same word error rate as the full one; beyond a quarter of the largest entropy steps did harm (docs/results/ttt_step.md, real_speech.md).
    "entropy": Objective(_of_logits(suta_objective), constant_updates=True, frozen_layers=1, max_entropy=0.25),
    "tent": Objective(_of_logits(lambda logits, blank_id: tent_objective(logits)), parameters=("norms",)),
    "class_confusion": Objective(_of_logits(lambda logits, blank_id: class_confusion(at_least_float32(logits)))),
    "generalised_entropy": Objective(_of_logits(generalised_entropy, path=StepView.path)),
    "consistency": Objective(_consistency, masks=True),
    "spoken_entropy": Objective(_of_logits(spoken_entropy), parameters=("norms",)),
    "confidence_entropy": Objective(_of_logits(confidence_entropy)),
    "coherent_entropy": Objective(
        _of_features(coherent_entropy, "features", "logits", "blank_id"),
        features=True,
        whole=True,
        parameters=("norms",),
    ),
    "pseudo_labels": Objective(
        _of_logits(pseudo_label_loss, labels=StepView.pseudo_labels), whole=True, parameters=("norms",)
    ),
    "alignment": Objective(
        _of_features(utterance_alignment, "features", "hidden_states", "source"),
        features=True,
        whole=True,
        statistics=True,
    ),
    "e_bats": Objective(
        _of_features(e_bats_objective, "features", "hidden_states", "logits", "blank_id", "source"),
        features=True,
        whole=True,
        statistics=True,
        parameters=(FEATURE_OFFSET,),
    ),
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
        """What `lact_asr.ttt_names.parse_loss` reads; raises as it does."""
        return cls(tuple((weight, OBJECTIVES[name]) for weight, name in parse_loss(text)))

    @property
    def parameters(self) -> tuple[str, ...]:
        """What adapts, unless the user says otherwise: as the first term has it."""
        _, first = self.terms[0]
        return first.parameters

    @property
    def masks(self) -> bool:
        """Whether any objective hides frames."""
        return any(objective.masks for _, objective in self.terms)

    @property
    def head(self) -> bool:
        """Whether any objective needs the masked-prediction head."""
        return any(objective.head for _, objective in self.terms)

    @property
    def plain(self) -> bool:
        """Whether any objective looks at the logits of the unmasked pass."""
        return any(not objective.masks and not objective.features for _, objective in self.terms)

    @property
    def features(self) -> bool:
        """Whether any objective looks at the front end's features."""
        return any(objective.features for _, objective in self.terms)

    @property
    def whole(self) -> bool:
        """Whether any objective needs the utterance in one piece."""
        return any(objective.whole for _, objective in self.terms)

    @property
    def statistics(self) -> bool:
        """Whether any objective needs statistics of training."""
        return any(objective.statistics for _, objective in self.terms)

    def losses(self, view: StepView) -> Tensor:
        """[B] float32 with gradients."""
        if self.features:
            _ = view.observed  # first: its pass serves the terms that look at logits alone
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
