"""From the command line to a recogniser: defaults filled in, decoder, language model and test-time training set up."""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools

from transformers import PreTrainedConfig

from lact_asr.checkpoint import LoadedCheckpoint
from lact_asr.devices import choose_device
from lact_asr.errors import InputError
from lact_asr.inference.alignment.ctc_paths import decoder_path
from lact_asr.inference.companions import (
    checkpoint_folder,
    companion,
    find_language_model,
    language_model_beside,
    tuned_weights,
)
from lact_asr.inference.decoding import (
    DEFAULT_LM_WEIGHT,
    DEFAULT_WORD_SCORE,
    CTCAlphabet,
    Decoder,
    DecodingPool,
    make_decoder,
    text_ids,
)
from lact_asr.inference.language_models.language_model import LanguageModel, load_language_model
from lact_asr.inference.long_audio.voice_activity import choose_detector
from lact_asr.inference.recogniser import Recogniser
from lact_asr.inference.ttt.from_flags import describe_ttt, fill_in_ttt, ttt_recipe
from lact_asr.inference.ttt.objectives import all_finite
from lact_asr.inference.ttt.recipes import Recipe
from lact_asr.inference.ttt.statistics import STATISTICS_NAME, load_statistics
from lact_asr.inference.ttt.views import Guides
from lact_asr.modeling_hybrid_asr import HybridASRForCTC


def fill_in_defaults(arguments: argparse.Namespace, config: PreTrainedConfig) -> argparse.Namespace:
    """The command line with every flag that was left out replaced by the value that will be used.

    What results are reported and resumed with should not depend on files that may change or appear later.

    Raises:
        InputError: the tuned weights beside the checkpoint cannot be read, or a flag of TTT cannot be what it is.
    """
    filled = {**vars(arguments), **_decoding_values(arguments)}
    filled["voice_activity"] = choose_detector(arguments.voice_activity)
    if arguments.use_ttt:
        filled |= fill_in_ttt(arguments, config)
        filled["ttt_keep"] = _keep(arguments, filled["lm_path"])
    return argparse.Namespace(**filled)


def _keep(arguments: argparse.Namespace, lm_path: str) -> str:
    """Greedily, the adapted transcript is the better bet; with a language model, the likelier one of both (docs/results/unseen_noise.md)."""
    return arguments.ttt_keep or ("always" if lm_path == "none" else "likelier")


def _decoding_values(arguments: argparse.Namespace) -> dict[str, object]:
    beam_size, lm_path = (1, "none") if arguments.greedy else (arguments.beam_size, arguments.lm_path)
    if lm_path == "auto":
        lm_path = language_model_beside(arguments.checkpoint)
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
        if not getattr(checkpoint.model.config, "use_fast_weights", False):
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
    vocabulary, blank_id = checkpoint.processor.vocabulary, checkpoint.model.config.pad_token_id
    find_path = statistics = None
    beam_size = max(stage.beam_size for stage in recipe.stages)
    if beam_size > 1:
        decoder = _decoder(arguments, checkpoint, language_model, beam_size)
        find_path = decoder_path(decoder, CTCAlphabet(vocabulary, blank_id), blank_id)
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
    return f"{decoding} {describe_ttt(arguments)}"


def _decoder(
    arguments: argparse.Namespace, checkpoint: LoadedCheckpoint, language_model: LanguageModel | None, beam_size: int
) -> Decoder:
    vocabulary, blank_id = checkpoint.processor.vocabulary, checkpoint.model.config.pad_token_id
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
    vocabulary, blank_id = checkpoint.processor.vocabulary, checkpoint.model.config.pad_token_id
    options = {"beam_size": arguments.beam_size, **_search_options(arguments)}
    make = functools.partial(_load_decoder, vocabulary, blank_id, arguments.lm_path, options)
    return DecodingPool(make, arguments.decoding_processes)


def _load_decoder(vocabulary: dict[str, int], blank_id: int, lm_path: str, options: dict[str, object]) -> Decoder:
    language_model = None if lm_path == "none" else load_language_model(lm_path)
    return make_decoder(vocabulary, blank_id, language_model=language_model, **options)
