"""Recipes: the stages of test-time training, and what is carried from one utterance to the next."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from lact_asr.errors import InputError
from lact_asr.inference.ttt.recipe_files import read_recipe
from lact_asr.inference.ttt.resets import RESET_RULES, ResetRule
from lact_asr.inference.ttt.settings import TTTSettings
from lact_asr.ttt_names import SCOPES, parse_groups

_ABOUT = ("summary", "source", "notes")  # for people


@dataclass(frozen=True)
class Recipe:
    """How to adapt to utterances, one by one or one after another.

    Attributes:
        stages: each goes on from where the one before ended.
        scope: of `lact_asr.ttt_names.SCOPES`. What follows counts only where something is carried.
        decay: after each utterance W ← W₀ + decay · (W − W₀); 1 keeps all that was learned.
        momentum: what is carried is momentum · carried + (1 − momentum) · adapted; 0 takes the adapted. Of a search it is the
            distribution that candidates are drawn from.
        buffer: where above 0, utterances' own steps are not carried; instead one step of the first stage is, on the mean loss of
            so many utterances (slow adaptation of DSUTA, arXiv 2406.11064).
        leader_momentum: of the leader whose transcripts the loss pseudo_labels learns too (AWMC); None for no leader.
        reset: when to start again from the trained model; None for never.

    Raises:
        InputError: a value is impossible.
    """

    stages: tuple[TTTSettings, ...]
    scope: str = "utterance"
    decay: float = 1.0
    momentum: float = 0.0
    buffer: int = 0
    leader_momentum: float | None = None
    reset: ResetRule | None = None

    def __post_init__(self) -> None:
        if not self.stages:
            raise InputError("A TTT recipe needs one stage or more.")
        if self.scope not in SCOPES:
            raise InputError(f"Unknown TTT scope {self.scope!r}; choose {', '.join(SCOPES)}.")
        shares = {"decay": self.decay, "momentum": self.momentum, "leader_momentum": self.leader_momentum or 0.0}
        for name, value in shares.items():
            if not (isinstance(value, (int, float)) and 0 <= value <= 1):
                raise InputError(f"The {name} of TTT must be between 0 and 1, not {value}.")
        if not isinstance(self.buffer, int) or self.buffer < 0:
            raise InputError(f"The buffer of a TTT recipe must hold 0 or more utterances, not {self.buffer}.")
        if self.scope == "utterance" and (self.decay, self.reset) != (1.0, None):
            raise InputError("A decay or a reset of TTT needs a scope beyond the utterance: speaker or stream.")

    @property
    def carries(self) -> bool:
        """Whether an utterance's result depends on those before it."""
        return self.scope != "utterance"

    def describe(self) -> str:
        """The stages, and what is carried, in a line."""
        stages = ", then ".join(_in_words(stage) for stage in self.stages)
        return stages + (f"; {self._carried_in_words()}" if self.carries else "")

    def _carried_in_words(self) -> str:
        parts = [f"carried by {self.scope}"]
        parts += [f"decay {self.decay:g}"] * (self.decay != 1)
        parts += [f"momentum {self.momentum:g}"] * (self.momentum != 0)
        parts += [f"a step on every {self.buffer} utterances"] * (self.buffer > 0)
        parts += [f"a leader of momentum {self.leader_momentum}"] * (self.leader_momentum is not None)
        parts += ["with resets"] * (self.reset is not None)
        return ", ".join(parts)


def _in_words(stage: TTTSettings) -> str:
    rate = "" if stage.learning_rate is None else f" at {stage.learning_rate:g}"
    rate += "" if stage.final_learning_rate is None else f" to {stage.final_learning_rate:g}"
    groups = "" if stage.parameters is None else f" on {','.join(stage.parameters)}"
    steps = f"{stage.loss_type}, {stage.steps} step{'s' * (stage.steps != 1)} of {stage.optimizer}{rate}{groups}"
    more = [f"sharpness-aware, radius {stage.sharpness:g}"] * (stage.sharpness > 0)
    more += [f"along the path of {stage.beam_size} beams"] * (stage.beam_size > 1)
    return ", ".join([steps, *more])


def load_recipe(name_or_path: str, changes: Mapping[str, object] | None = None) -> Recipe:
    """A recipe by name or from a JSON file, with some values changed.

    Args:
        name_or_path: see `lact_asr.inference.ttt.recipe_files.read_recipe`.
        changes: values of `TTTSettings`, which replace those of every stage, and of `Recipe`.

    Raises:
        InputError: no such recipe, an unknown key, or an impossible value.
    """
    changes = dict(changes or {})
    content = {key: value for key, value in read_recipe(name_or_path).items() if key not in _ABOUT}
    stages = content.pop("stages", None)
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise InputError(f"The TTT recipe {name_or_path} needs a list of stages.")
    recipe_keys = {field.name for field in dataclasses.fields(Recipe)} - {"stages"}
    content |= {key: changes.pop(key) for key in recipe_keys & changes.keys()}
    if content.get("scope") == "utterance":  # asked for beside the recipe: what is carried does not matter
        content = {"scope": "utterance"}
    if isinstance(content.get("reset"), dict):
        content["reset"] = _reset_rule(name_or_path, content["reset"])
    _check_keys(name_or_path, content, recipe_keys)
    return Recipe(tuple(_stage(name_or_path, {**stage, **changes}) for stage in stages), **content)


def _stage(recipe: str, values: dict) -> TTTSettings:
    _check_keys(recipe, values, {field.name for field in dataclasses.fields(TTTSettings)})
    if isinstance(values.get("parameters"), str):
        values["parameters"] = parse_groups(values["parameters"])
    try:
        return TTTSettings(**values)
    except TypeError as error:
        raise InputError(f"The TTT recipe {recipe} has a value of the wrong kind: {error}.") from None


def _reset_rule(recipe: str, values: dict) -> ResetRule:
    values = dict(values)
    rule = RESET_RULES.get(values.pop("rule", None))
    if rule is None:
        raise InputError(f"The TTT recipe {recipe} has an unknown reset rule; choose {', '.join(RESET_RULES)}.")
    _check_keys(recipe, values, {field.name for field in dataclasses.fields(rule)})
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values.values()):
        raise InputError(f"The reset rule of the TTT recipe {recipe} takes numbers.")
    return rule(**values)


def _check_keys(recipe: str, values: Mapping, known: set[str]) -> None:
    for key in values:
        if key not in known:
            raise InputError(
                f"The TTT recipe {recipe} has an unknown key {key!r}; choose from {', '.join(sorted(known))}."
            )
