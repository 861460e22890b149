"""From the command line to a recogniser and a list of utterances."""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils import cached_file

from lact_asr.audio import find_audio_files
from lact_asr.checkpoint import LoadedCheckpoint
from lact_asr.configuration_hybrid_asr import HybridASRConfig
from lact_asr.data.corpora import Corpus, load_corpus, transcript
from lact_asr.errors import InputError
from lact_asr.inference.alignment.ctc_paths import decoder_path
from lact_asr.inference.decoding import (
    DEFAULT_LM_WEIGHT,
    DEFAULT_WORD_SCORE,
    Decoder,
    DecodingPool,
    make_decoder,
    text_ids,
)
from lact_asr.inference.evaluation import Utterance
from lact_asr.inference.language_models.language_model import LanguageModel, load_language_model
from lact_asr.inference.long_audio.long_recordings import read_cut_or_defer, read_or_defer
from lact_asr.inference.long_audio.voice_activity import choose_detector
from lact_asr.inference.recogniser import Recogniser
from lact_asr.inference.ttt.objectives import all_finite
from lact_asr.inference.ttt.recipes import Recipe, load_recipe
from lact_asr.inference.ttt.settings import TTTSettings
from lact_asr.inference.ttt.statistics import STATISTICS_NAME, load_statistics
from lact_asr.inference.ttt.step import Guides, WeightedSum
from lact_asr.modeling_hybrid_asr import HybridASRForCTC
from lact_asr.ttt_names import CONTROLS, KEEP, parse_groups

LANGUAGE_MODEL_NAME = "lm.arpa"
TUNED_WEIGHTS_NAME = "lm_weights.json"
LONGEST_WHOLE_SECONDS = (
    60.0  # of a corpus: its utterances are scored as they are, and LibriSpeech has some of 35 seconds
)


def choose_device(name: str) -> torch.device:
    """The device for ``--device``.

    Raises:
        InputError: a GPU was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda was asked for but PyTorch sees no GPU.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def fill_in_defaults(arguments: argparse.Namespace, config: HybridASRConfig) -> argparse.Namespace:
    """The command line with every flag that was left out replaced by the value that will be used.

    What results are reported and resumed with should not depend on files that may change or appear later.

    Raises:
        InputError: the tuned weights beside the checkpoint cannot be read.
    """
    filled = {**vars(arguments), **_decoding_values(arguments)}
    filled["voice_activity"] = choose_detector(arguments.voice_activity)
    if arguments.use_ttt and arguments.ttt_recipe is not None:
        filled["ttt_recipe"] = _recipe_with_flags(arguments, config)
    elif arguments.use_ttt:
        filled |= _ttt_values(arguments, config)
    filled = argparse.Namespace(**filled)
    if arguments.use_ttt:
        filled.ttt_keep = _keep(arguments, filled.lm_path)
        _check_scope(ttt_recipe(filled, config).scope, arguments)
    return filled


def describe_default_loss(arguments: argparse.Namespace, config: HybridASRConfig) -> list[str]:
    """A sentence on which loss test-time training takes where the command line, before `fill_in_defaults`, names none."""
    if not arguments.use_ttt or arguments.ttt_loss_type is not None or arguments.ttt_recipe is not None:
        return []
    loss = config.default_ttt_loss
    reason = (
        "which the model's configuration names"
        if loss == config.ttt_loss_type
        else "as it has no masked-prediction head"
    )
    return [f"Without --ttt_loss_type this model takes the TTT loss {loss}, {reason}."]


def _recipe_with_flags(arguments: argparse.Namespace, config: HybridASRConfig) -> Recipe:
    given = {
        name.removeprefix("ttt_"): value
        for name, value in vars(arguments).items()
        if name.startswith("ttt_") and name not in ("ttt_recipe", "ttt_keep") and value is not None
    }
    return load_recipe(arguments.ttt_recipe, {"mask_length": config.ttt_mask_length, "seed": arguments.seed, **given})


def _check_scope(scope: str, arguments: argparse.Namespace) -> None:
    if scope != "utterance" and arguments.resume:
        raise InputError(
            "--resume cannot take up what TTT had carried from utterance to utterance; leave out one of them."
        )
    if scope == "speaker" and arguments.data_dir is None:
        raise InputError("The TTT scope speaker needs a corpus that names its speakers: give --data_dir.")


def _ttt_values(arguments: argparse.Namespace, config: HybridASRConfig) -> dict[str, object]:
    """What the model was trained for, or, with another loss, that one's defaults; a learning rate of None means learned rates."""
    loss_type = arguments.ttt_loss_type or config.default_ttt_loss
    _, first_loss = WeightedSum.parse(loss_type).terms[0]
    defaults = {
        "ttt_loss_type": loss_type,
        "ttt_steps": config.ttt_steps,
        "ttt_mask_prob": config.ttt_mask_prob,
        "ttt_chunk_size": config.ttt_chunk_size,
        "ttt_parameters": ",".join(first_loss.parameters),
        "ttt_optimizer": "adamw",
    }
    if loss_type == config.ttt_loss_type:
        defaults["ttt_optimizer"] = config.ttt_optimizer
        defaults["ttt_parameters"] = config.ttt_parameters or defaults["ttt_parameters"]
    values = {
        name: default if getattr(arguments, name) is None else getattr(arguments, name)
        for name, default in defaults.items()
    }
    as_trained = all(
        values[name] == getattr(config, name) for name in ("ttt_loss_type", "ttt_parameters", "ttt_optimizer")
    )
    rate = arguments.ttt_learning_rate
    if rate is None and as_trained:
        rate = None if config.ttt_training == "meta" else config.ttt_learning_rate or first_loss.learning_rate
    elif rate is None and values["ttt_optimizer"] != "sgd":
        rate = first_loss.learning_rate
    wanted = TTTSettings(
        loss_type,
        constant_updates=arguments.ttt_constant_updates,
        frozen_layers=arguments.ttt_frozen_layers,
        max_entropy=arguments.ttt_max_entropy,
    )
    groups = parse_groups(values["ttt_parameters"])
    constant_updates, frozen_layers = wanted.savings(groups, learned=config.ttt_training == "meta")
    return {
        **values,
        "ttt_learning_rate": rate,
        "ttt_constant_updates": constant_updates,
        "ttt_frozen_layers": frozen_layers,
        "ttt_max_entropy": wanted.entropy_limit,
    }


def _keep(arguments: argparse.Namespace, lm_path: str) -> str:
    """Greedily, the adapted transcript is the better bet; with a language model, the likelier one of both (docs/results.md)."""
    return arguments.ttt_keep or ("always" if lm_path == "none" else "likelier")


def _decoding_values(arguments: argparse.Namespace) -> dict[str, object]:
    beam_size, lm_path = (1, "none") if arguments.greedy else (arguments.beam_size, arguments.lm_path)
    if lm_path == "auto":
        lm_path = _language_model_beside(arguments.checkpoint)
    if lm_path == "none":
        return {"beam_size": beam_size, "lm_path": lm_path, "lm_weight": None, "word_score": None}
    weights = {"lm_weight": DEFAULT_LM_WEIGHT, "word_score": DEFAULT_WORD_SCORE}
    weights |= tuned_weights(arguments.checkpoint, lm_path)
    given = {name: getattr(arguments, name) for name in weights if getattr(arguments, name) is not None}
    return {"beam_size": beam_size, "lm_path": lm_path, **weights, **given}


def results_settings(arguments: argparse.Namespace) -> dict[str, str]:
    """What decides the results: everything but where they go and on what they are computed."""
    left_out = (
        "output", "output_format", "word_times", "resume", "overwrite", "device", "move_emission_to_cpu", "max_samples", "batch_size",
        "decoding_processes",
    )  # fmt: skip
    return {key: str(value) for key, value in vars(arguments).items() if key not in left_out}


def make_recogniser(arguments: argparse.Namespace, checkpoint: LoadedCheckpoint) -> Recogniser:
    """Set up language model, decoder and TTT.

    Args:
        arguments: what `fill_in_defaults` returned.
        checkpoint: of `load_checkpoint`.

    Raises:
        InputError: weights that are not finite, no such device, a language model that does not fit, TTT that this
            model cannot do, no fast weights to freeze, or an impossible value.
    """
    if not all_finite(*checkpoint.model.parameters()):
        raise InputError(f"The weights in {arguments.checkpoint} hold NaN or infinity: its training failed.")
    if arguments.freeze_fast_weights:
        if not checkpoint.model.config.use_fast_weights:
            raise InputError(
                f"The model {arguments.checkpoint} has no fast weights for --freeze_fast_weights to freeze."
            )
        checkpoint = dataclasses.replace(checkpoint, model=_with_frozen_fast_weights(checkpoint.model))
    language_model = find_language_model(arguments.lm_path, arguments.checkpoint)
    recipe = ttt_recipe(arguments, checkpoint.model.config) if arguments.use_ttt else None
    return Recogniser(
        checkpoint,
        _decoder(arguments, checkpoint, language_model, arguments.beam_size),
        recipe,
        choose_device(arguments.device),
        arguments.move_emission_to_cpu,
        arguments.ttt_keep or "always",
        Guides() if recipe is None else _guides(recipe, arguments, checkpoint, language_model),
        arguments.carry_fast_weights,
    )


def _with_frozen_fast_weights(model: HybridASRForCTC) -> HybridASRForCTC:
    """A second model on the same weights: other recognisers may use the first, whose fast weights go on learning."""
    frozen = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    frozen.config.update_fast_weights = False
    return frozen


def _guides(
    recipe: Recipe, arguments: argparse.Namespace, checkpoint: LoadedCheckpoint, language_model: LanguageModel | None
) -> Guides:
    """What a recipe's losses and the safeguards need: a decoder for paths, statistics of training, what is text."""
    vocabulary, blank_id = checkpoint.processor.vocabulary, checkpoint.model.config.ctc_blank_id
    find_path = statistics = None
    beam_size = max(stage.beam_size for stage in recipe.stages)
    if beam_size > 1:
        decoder = _decoder(arguments, checkpoint, language_model, beam_size)
        find_path = decoder_path(decoder, vocabulary, blank_id)
    if any(stage.loss.statistics for stage in recipe.stages):
        path = companion(arguments.checkpoint, STATISTICS_NAME)
        path = path or checkpoint_folder(arguments.checkpoint) / STATISTICS_NAME
        statistics = load_statistics(path, checkpoint.model, choose_device(arguments.device))
    return Guides(find_path, statistics, text_ids(vocabulary, blank_id))


def describe_recogniser(arguments: argparse.Namespace) -> str:
    """One sentence on decoding and one on TTT, from what `fill_in_defaults` returned."""
    if arguments.lm_path != "none":
        decoding = (
            f"beam search, {arguments.beam_size} beams, language model {arguments.lm_path} "
            f"(weight {arguments.lm_weight:g}, word score {arguments.word_score:g})"
        )
    elif arguments.beam_size > 1 or arguments.hot_words:
        beams = f"{arguments.beam_size} beam{'s' * (arguments.beam_size > 1)}"
        decoding = f"beam search, {beams}, no language model"
    else:
        decoding = "greedy"
    if arguments.decoder != "pyctcdecode" and arguments.beam_size > 1:
        decoding += f", {arguments.decoder}"
    if arguments.hot_words:
        decoding += f", hot words {' '.join(arguments.hot_words)} ({arguments.hot_word_weight:g})"
    decoding = f"Decoding: {decoding}.{' Fast weights are not updated.' * arguments.freeze_fast_weights}"
    if not arguments.use_ttt:
        return decoding
    kept = f" Kept: {KEEP[arguments.ttt_keep]}."
    if arguments.ttt_recipe is not None:
        return f"{decoding} TTT: {arguments.ttt_recipe.describe()}.{kept}"
    rate = "learned rates" if arguments.ttt_learning_rate is None else f"{arguments.ttt_learning_rate:g}"
    control = "" if arguments.ttt_control is None else f" Control: {CONTROLS[arguments.ttt_control]}."
    count = arguments.ttt_frozen_layers
    frozen = f", {count} layer{'s' * (count != 1)} frozen" if count else ""
    constant = ", constant fast-weight updates" if arguments.ttt_constant_updates else ""
    return (
        f"{decoding} TTT: {arguments.ttt_loss_type}, {arguments.ttt_steps} "
        f"step{'s' * (arguments.ttt_steps != 1)} of {arguments.ttt_optimizer} at {rate} "
        f"on {arguments.ttt_parameters}{frozen}{constant}{_scope_in_words(arguments)}.{kept}{control}"
    )


def _scope_in_words(arguments: argparse.Namespace) -> str:
    if arguments.ttt_scope in (None, "utterance"):
        return ""
    return f", carried by {arguments.ttt_scope}" + (
        f" with decay {arguments.ttt_decay:g}" if arguments.ttt_decay else ""
    )


def ttt_recipe(arguments: argparse.Namespace, config: HybridASRConfig) -> Recipe:
    """The TTT flags of what `fill_in_defaults` returned.

    Raises:
        InputError: an impossible value.
    """
    if arguments.ttt_recipe is not None:
        return arguments.ttt_recipe
    decay = 1.0 if arguments.ttt_decay is None else arguments.ttt_decay
    return Recipe((_ttt_settings(arguments, config),), arguments.ttt_scope or "utterance", decay)


def _ttt_settings(arguments: argparse.Namespace, config: HybridASRConfig) -> TTTSettings:
    return TTTSettings(
        loss_type=arguments.ttt_loss_type,
        steps=arguments.ttt_steps,
        parameters=parse_groups(arguments.ttt_parameters),
        optimizer=arguments.ttt_optimizer,
        learning_rate=arguments.ttt_learning_rate,
        mask_prob=arguments.ttt_mask_prob,
        mask_length=config.ttt_mask_length,
        chunk_size=arguments.ttt_chunk_size,
        seed=arguments.seed,
        constant_updates=arguments.ttt_constant_updates,
        frozen_layers=arguments.ttt_frozen_layers,
        max_entropy=arguments.ttt_max_entropy,
        control=arguments.ttt_control,
    )


def checkpoint_folder(checkpoint: str) -> Path:
    """The folder that a checkpoint's companions lie in; for the name of a hub model the current one."""
    path = Path(checkpoint)
    if not path.exists():
        return Path()
    return path if path.is_dir() else path.parent


def find_language_model(lm_path: str, checkpoint: str) -> LanguageModel | None:
    """The language model of ``--lm_path``: a file, "none", or "auto" for the one beside the checkpoint if any."""
    if lm_path == "auto":
        lm_path = _language_model_beside(checkpoint)
    return None if lm_path == "none" else load_language_model(lm_path)


def _language_model_beside(checkpoint: str) -> str:
    beside = companion(checkpoint, LANGUAGE_MODEL_NAME)
    return "none" if beside is None else str(beside)


def companion(checkpoint: str, name: str) -> Path | None:
    """A file beside a checkpoint, or in a hub model's repository (from there it is fetched, or taken from the cache); None where there is none."""
    if Path(checkpoint).exists():
        path = checkpoint_folder(checkpoint) / name
        return path if path.is_file() else None
    with contextlib.suppress(OSError):  # the hub cannot be reached, and the model itself came from the cache
        found = cached_file(checkpoint, name, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found)
    return None


def _decoder(
    arguments: argparse.Namespace, checkpoint: LoadedCheckpoint, language_model: LanguageModel | None, beam_size: int
) -> Decoder:
    vocabulary, blank_id = checkpoint.processor.vocabulary, checkpoint.model.config.ctc_blank_id
    options = _search_options(arguments)
    return make_decoder(vocabulary, blank_id, beam_size=beam_size, language_model=language_model, **options)


def _search_options(arguments: argparse.Namespace) -> dict[str, object]:
    names = {"beam_threshold", "hot_word_weight", "n_best"}
    if arguments.lm_path != "none":
        names |= {"lm_weight", "word_score"}
    options = {name: getattr(arguments, name) for name in names}
    return {"back_end": arguments.decoder, "hot_words": tuple(arguments.hot_words), **options}


def decoding_pool(
    arguments: argparse.Namespace, checkpoint: LoadedCheckpoint
) -> contextlib.AbstractContextManager[DecodingPool | None]:
    """The processes of ``--decoding_processes``, or None; arguments as for `make_recogniser`, which checks them."""
    if arguments.decoding_processes == 0:
        return contextlib.nullcontext()
    vocabulary, blank_id = checkpoint.processor.vocabulary, checkpoint.model.config.ctc_blank_id
    options = {"beam_size": arguments.beam_size, **_search_options(arguments)}
    make = functools.partial(_load_decoder, vocabulary, blank_id, arguments.lm_path, options)
    return DecodingPool(make, arguments.decoding_processes)


def _load_decoder(vocabulary: dict[str, int], blank_id: int, lm_path: str, options: dict[str, object]) -> Decoder:
    language_model = None if lm_path == "none" else load_language_model(lm_path)
    return make_decoder(vocabulary, blank_id, language_model=language_model, **options)


def tuned_weights(checkpoint: str, lm_path: str) -> dict[str, float]:
    """What `lact_asr.inference.tune_language_model` wrote beside the checkpoint; empty if not for this language model."""
    path = companion(checkpoint, TUNED_WEIGHTS_NAME)
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        tuned_for = path.parent / content.get("language_model", LANGUAGE_MODEL_NAME)
        if tuned_for.absolute() != Path(lm_path).absolute() and tuned_for.resolve() != Path(lm_path).resolve():
            return {}
        return {key: float(content["best"][key]) for key in ("lm_weight", "word_score")}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} does not hold tuned language-model weights; remove it or tune again.") from None


def list_utterances(arguments: argparse.Namespace) -> tuple[list[Utterance], Corpus | None]:
    """What to transcribe, and the corpus it comes from if any.

    Raises:
        InputError: no such file, folder or subset.
    """
    if arguments.data_dir is not None:
        corpus = load_corpus(arguments.data_dir, arguments.subset, arguments.dataset_type)
        utterances = corpus_utterances(corpus, max(arguments.segment_seconds, LONGEST_WHOLE_SECONDS))
    else:
        corpus = None
        paths = arguments.audio_file or find_audio_files(arguments.audio_dir)
        longest = arguments.segment_seconds
        utterances = [
            Utterance(_printable(path), None, functools.partial(read_or_defer, path, longest)) for path in paths
        ]
    return utterances[: arguments.max_samples], corpus


def _printable(path: Path) -> str:
    """A path as text that can be written; bytes of its name that are not UTF-8 become escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")


def corpus_utterances(corpus: Corpus, longest_seconds: float = math.inf) -> list[Utterance]:
    """One `Utterance` for each cut of a corpus; those longer than ``longest_seconds`` are to be cut at silence."""
    return [
        Utterance(
            cut.id,
            transcript(cut),
            functools.partial(read_cut_or_defer, cut, longest_seconds),
            cut.supervisions[0].speaker,
            cut.duration,
        )
        for cut in corpus.cuts
    ]


def spread_evenly(items: Sequence, count: int | None) -> Sequence:
    """At most ``count`` (None: all), evenly spread: corpora are sorted by speaker, and the first ones would be few speakers."""
    if count is None or len(items) <= count:
        return items
    return [items[index * len(items) // count] for index in range(count)]
