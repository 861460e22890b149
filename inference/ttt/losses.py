"""What a step of test-time training minimises: objectives by name, and their weighted sums."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

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
from lact_asr.inference.ttt.own_losses import find_function
from lact_asr.inference.ttt.pseudo_labels import pseudo_label_loss
from lact_asr.inference.ttt.views import StepView
from lact_asr.ttt_names import FEATURE_OFFSET, parse_groups, parse_loss


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
        learning_rate: of AdamW, likewise; None takes the default of the kind of model (`TTTSettings.default_rate`).
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
    learning_rate: float | None = None
    constant_updates: bool = False
    frozen_layers: int = 0
    max_entropy: float = 1.0


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
        return cls(tuple((weight, OBJECTIVES.get(name) or _own_objective(name)) for weight, name in parse_loss(text)))

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


@functools.cache
def _own_objective(name: str) -> Objective:
    """Of a function ``loss(logits, blank_id)``, named as ``MODULE:FUNCTION``; its attributes ``parameters`` and ``learning_rate`` are its defaults.

    Raises:
        InputError: there is none of that name, or it names parameters that there are not.
    """
    function = find_function(name)
    defaults = {key: getattr(function, key) for key in ("parameters", "learning_rate") if hasattr(function, key)}
    if "parameters" in defaults:
        groups = defaults["parameters"]
        defaults["parameters"] = parse_groups(groups if isinstance(groups, str) else ",".join(groups))
    return Objective(_of_logits(function), **defaults)
