"""From the flags of test-time training to settings, and to a sentence that describes them."""

from __future__ import annotations

import argparse
import dataclasses

from transformers import PreTrainedConfig

from lact_asr.configuration_hybrid_asr import HybridASRConfig
from lact_asr.errors import InputError
from lact_asr.inference.ttt.recipes import Recipe, load_recipe
from lact_asr.inference.ttt.settings import TTTSettings
from lact_asr.ttt_names import CONTROLS, FALLBACK_LOSS, KEEP, parse_groups

# Flags without "ttt_" that are values of `TTTSettings`; "parameters" is text on the command line.
_SETTINGS = (
    "loss_type", "steps", "parameters", "optimizer", "learning_rate", "mask_prob", "chunk_size", "constant_updates", "frozen_layers",
    "max_entropy",
)  # fmt: skip


def fill_in_ttt(arguments: argparse.Namespace, config: PreTrainedConfig) -> dict[str, object]:
    """The TTT flags with what will be used in place of those that were left out; a learning rate of None means learned rates.

    Raises:
        InputError: an impossible value, or a scope that does not go with other flags.
    """
    if arguments.ttt_recipe is not None:
        filled = {"ttt_recipe": _recipe_with_flags(arguments, config)}
        _check_scope(filled["ttt_recipe"].scope, arguments)
        return filled
    given = {name: getattr(arguments, f"ttt_{name}") for name in _SETTINGS}
    given = {name: value for name, value in given.items() if value is not None}
    if "parameters" in given:
        given["parameters"] = parse_groups(given["parameters"])
    settings = TTTSettings.of(config, **given).resolved(config)
    _check_scope(arguments.ttt_scope or "utterance", arguments)
    filled = {f"ttt_{name}": getattr(settings, name) for name in _SETTINGS}
    return {**filled, "ttt_parameters": ",".join(settings.parameters)}


def ttt_recipe(arguments: argparse.Namespace, config: PreTrainedConfig) -> Recipe:
    """The recipe of flags that `fill_in_ttt` has filled in.

    Raises:
        InputError: an impossible value.
    """
    if arguments.ttt_recipe is not None:
        return arguments.ttt_recipe
    values = {name: getattr(arguments, f"ttt_{name}") for name in _SETTINGS}
    values |= {
        "parameters": parse_groups(arguments.ttt_parameters),
        "mask_length": TTTSettings.of(config).mask_length,
        "seed": arguments.seed,
        "control": arguments.ttt_control,
    }
    decay = 1.0 if arguments.ttt_decay is None else arguments.ttt_decay
    return Recipe((TTTSettings(**values),), arguments.ttt_scope or "utterance", decay)


def describe_default_loss(arguments: argparse.Namespace, config: PreTrainedConfig) -> list[str]:
    """A sentence on which loss test-time training takes where the command line, before `fill_in_defaults`, names none."""
    if not arguments.use_ttt or arguments.ttt_loss_type is not None or arguments.ttt_recipe is not None:
        return []
    if not isinstance(config, HybridASRConfig):
        return [
            f"Without --ttt_loss_type models of Transformers take SUTA's TTT loss, {FALLBACK_LOSS}, with its steps and rate."
        ]
    loss = config.default_ttt_loss
    reason = (
        "which the model's configuration names"
        if loss == config.ttt_loss_type
        else "as it has no masked-prediction head"
    )
    return [f"Without --ttt_loss_type this model takes the TTT loss {loss}, {reason}."]


def describe_ttt(arguments: argparse.Namespace) -> str:
    """What is adapted and kept, in a sentence or two, from flags that `fill_in_ttt` has filled in."""
    kept = f" Kept: {KEEP[arguments.ttt_keep]}."
    if arguments.ttt_recipe is not None:
        return f"TTT: {arguments.ttt_recipe.describe()}.{kept}"
    rate = "learned rates" if arguments.ttt_learning_rate is None else f"{arguments.ttt_learning_rate:g}"
    control = "" if arguments.ttt_control is None else f" Control: {CONTROLS[arguments.ttt_control]}."
    count = arguments.ttt_frozen_layers
    frozen = f", {count} layer{'s' * (count != 1)} frozen" if count else ""
    constant = ", constant fast-weight updates" if arguments.ttt_constant_updates else ""
    return (
        f"TTT: {arguments.ttt_loss_type}, {arguments.ttt_steps} "
        f"step{'s' * (arguments.ttt_steps != 1)} of {arguments.ttt_optimizer} at {rate} "
        f"on {arguments.ttt_parameters}{frozen}{constant}{_scope_in_words(arguments)}.{kept}{control}"
    )


def _scope_in_words(arguments: argparse.Namespace) -> str:
    if arguments.ttt_scope in (None, "utterance"):
        return ""
    return f", carried by {arguments.ttt_scope}" + (
        f" with decay {arguments.ttt_decay:g}" if arguments.ttt_decay else ""
    )


def _recipe_with_flags(arguments: argparse.Namespace, config: PreTrainedConfig) -> Recipe:
    given = {
        name.removeprefix("ttt_"): value
        for name, value in vars(arguments).items()
        if name.startswith("ttt_") and name not in ("ttt_recipe", "ttt_keep") and value is not None
    }
    recipe = load_recipe(
        arguments.ttt_recipe, {"mask_length": TTTSettings.of(config).mask_length, "seed": arguments.seed, **given}
    )
    return dataclasses.replace(recipe, stages=tuple(stage.resolved(config) for stage in recipe.stages))


def _check_scope(scope: str, arguments: argparse.Namespace) -> None:
    if scope != "utterance" and arguments.resume:
        raise InputError(
            "--resume cannot take up what TTT had carried from utterance to utterance; leave out one of them."
        )
    if scope == "speaker" and arguments.data_dir is None:
        raise InputError("The TTT scope speaker needs a corpus that names its speakers: give --data_dir.")
