"""Test-time training of utterances one after another: what is learned is carried along a stream, or by speaker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lact_asr.inference.alignment.ctc_paths import collapse_path
from lact_asr.inference.ttt.outcome import AdaptedState, TTTOutcome
from lact_asr.inference.ttt.recipes import Recipe
from lact_asr.inference.ttt.resets import LossShiftDetector, LowEntropy, LowEntropyDetector
from lact_asr.inference.ttt.search import SearchDistribution
from lact_asr.inference.ttt.settings import TTTSettings
from lact_asr.inference.ttt.views import Guides
from lact_asr.inference.ttt_procedure import TestTimeTrainer, row_lengths


def make_trainer(
    model: nn.Module,
    settings: TTTSettings | Recipe,
    guides: Guides = Guides(),  # noqa: B008 - frozen
) -> TestTimeTrainer | CarriedTrainer:
    """What adapts a model as settings or a recipe say."""
    if isinstance(settings, TTTSettings):
        return TestTimeTrainer(model, settings, guides=guides)
    if settings.carries:
        return CarriedTrainer(model, settings, guides=guides)
    return TestTimeTrainer(model, settings.stages, guides=guides)


@dataclass
class Carried:
    """All that one speaker, or the stream, has learned since it last started from the trained model.

    Attributes:
        state: where the next utterance starts.
        leader: a moving average of the weights, by name; empty: the model's own.
        buffer: [samples] each, utterances that the next slow step waits for.
        detector: of the recipe's reset rule, if any.
        remembered: the weights that `LossShiftDetector` judges by.
    """

    state: AdaptedState = field(default_factory=AdaptedState)
    leader: dict[str, Tensor] = field(default_factory=dict)
    buffer: list[Tensor] = field(default_factory=list)
    detector: LowEntropyDetector | LossShiftDetector | None = None
    remembered: AdaptedState | None = None


class CarriedTrainer:
    """Test-time training with memory. All of it is in this object: the model is after each utterance as it was.

    What an utterance gives depends on those before it, in their order. An adaptation that breaks (see
    `lact_asr.inference.ttt.safeguards`) forgets all that was carried; an utterance from which there is nothing to learn leaves it
    alone.

    Args:
        model, blank_id, guides: as of `TestTimeTrainer`.
        recipe: whose scope is "speaker" or "stream".
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        blank_id: int | None = None,
        guides: Guides = Guides(),  # noqa: B008 - frozen
    ) -> None:
        self.recipe, self.trainer = recipe, TestTimeTrainer(model, recipe.stages, blank_id, guides)
        self.resets = 0
        self._carried: dict[str | None, Carried] = {}

    def reset(self) -> None:
        """Forget everything."""
        self._carried.clear()

    def adapt(self, input_values: Tensor, speaker: str | None = None) -> TTTOutcome:
        """Adapt to the next utterance, [samples], from what those before it left.

        Args:
            input_values: normalised by the processor, on the model's device.
            speaker: for the scope "speaker"; an utterance without one starts from the trained model and leaves nothing.
        """
        key = speaker if self.recipe.scope == "speaker" else None
        carried = self._carried.setdefault(key, self._fresh())
        leader_labels = None
        if self.recipe.leader_momentum is not None:
            leader_logits = self.trainer.logits(input_values, AdaptedState(carried.leader))
            leader_labels = collapse_path(leader_logits.argmax(-1), self.trainer.blank_id)
        outcome = self.trainer.adapt(input_values, carried.state, leader_labels)
        if self._learn(carried, input_values, outcome):
            self.resets += 1
            del self._carried[key]
        elif self.recipe.scope == "speaker" and speaker is None:
            del self._carried[key]
        return outcome

    def adapt_batch(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        speakers: Sequence[str | None] | None = None,
    ) -> list[TTTOutcome]:
        """`adapt` to the rows of [B, samples], one after the other in their order, each without its padding."""
        speakers = speakers or [None] * len(input_values)
        rows = zip(input_values, row_lengths(input_values, attention_mask), speakers, strict=True)
        return [self.adapt(row[:length], speaker) for row, length, speaker in rows]

    def _fresh(self) -> Carried:
        rule = self.recipe.reset
        if rule is None:
            return Carried()
        return Carried(detector=(LowEntropyDetector if isinstance(rule, LowEntropy) else LossShiftDetector)(rule))

    def _learn(self, carried: Carried, input_values: Tensor, outcome: TTTOutcome) -> bool:
        """Carry over what an utterance taught; returns whether to forget everything instead."""
        if not outcome.adapted:
            return outcome.steps > 0  # it broke while it adapted
        if self.recipe.buffer:
            return self._learn_slowly(carried, input_values)
        if not outcome.steps:
            return False
        carried.state = self._merged(carried.state, outcome.state)
        if self.recipe.leader_momentum is not None:
            carried.leader = self._averaged(carried.leader, outcome.state.weights, self.recipe.leader_momentum)
        detector = carried.detector
        return isinstance(detector, LowEntropyDetector) and any(map(detector.observe, outcome.losses))

    def _merged(self, before: AdaptedState, after: AdaptedState) -> AdaptedState:
        """What the next utterance starts from: the moving average, pulled towards the trained model."""
        momentum, decay = self.recipe.momentum, self.recipe.decay
        weights = self._averaged(before.weights, after.weights, momentum)
        weights = {name: self._source(name, value).lerp(value, decay) for name, value in weights.items()}
        earlier = before.optimizers or [stage.optimizer() for stage in self.trainer.stages]
        optimizers = [
            old.averaged_with(new, momentum) if isinstance(new, SearchDistribution) else new
            for old, new in zip(earlier, after.optimizers, strict=True)
        ]
        return AdaptedState(weights, optimizers)

    def _averaged(self, old: dict[str, Tensor], new: dict[str, Tensor], momentum: float) -> dict[str, Tensor]:
        """momentum · old + (1 − momentum) · new; old values that are missing are the trained model's."""
        return {
            name: value.lerp(old.get(name, self._source(name, value)), momentum) if momentum else value
            for name, value in new.items()
        }

    def _source(self, name: str, like: Tensor) -> Tensor:
        parameter = self.trainer.parameters.get(name)
        return torch.zeros_like(like) if parameter is None else parameter.detach()

    def _learn_slowly(self, carried: Carried, input_values: Tensor) -> bool:
        """DSUTA's slow adaptation (arXiv 2406.11064) and its reset."""
        carried.buffer.append(input_values)
        detector = carried.detector if isinstance(carried.detector, LossShiftDetector) else None
        if len(carried.buffer) == self.recipe.buffer:
            if detector and detector.judges and detector.observe(self._gains(carried, carried.buffer)):
                return True
            carried.state = self.trainer.step_together(carried.buffer, carried.state)
            carried.buffer = []
        if detector:
            detector.utterances += 1
            if detector.remembers:
                carried.remembered = carried.state
            elif detector.collects:
                detector.gains += self._gains(carried, [input_values])
        return False

    def _gains(self, carried: Carried, utterances: Sequence[Tensor]) -> list[float]:
        """Each utterance's loss with the remembered weights, minus the trained model's."""
        with_memory = self.trainer.losses(utterances, carried.remembered)
        without = self.trainer.losses(utterances, AdaptedState())
        return [with_it - without_it for with_it, without_it in zip(with_memory, without, strict=True)]
