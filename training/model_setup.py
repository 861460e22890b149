"""From the command line to a model: configuration, its overrides, pretrained weights."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from lact_asr.checkpoint import load_hybrid_checkpoint
from lact_asr.configuration_hybrid_asr import HybridASRConfig
from lact_asr.errors import InputError
from lact_asr.front_end.architecture import front_end_values
from lact_asr.front_end.pretrained import front_end_config_from_pretrained
from lact_asr.inference.ttt.settings import TTTSettings
from lact_asr.modeling_hybrid_asr import HybridASRForCTC
from lact_asr.processing_hybrid_asr import HybridASRProcessor

# Flags that replace the configuration's values where they are given.
OVERRIDES = (
    "freeze_encoder",
    "encoder_lr_scale",
    "enable_ttt",
    "ttt_training",
    "ttt_loss_type",
    "ttt_parameters",
    "ttt_optimizer",
    "ttt_learning_rate",
    "ttt_steps",
    "ttt_mask_prob",
    "ttt_mask_length",
    "ttt_loss_weight",
    "ttt_after_weight",
    "ttt_outer_loss",
    "ttt_first_order",
)


def make_config(arguments: argparse.Namespace, resume_from: Sequence[Path] = ()) -> HybridASRConfig:
    """The configuration file with the command line's overrides, and with the shape of the pretrained front end if any.

    Args:
        arguments: of `lact_asr.training.arguments`.
        resume_from: the run's checkpoints: the configuration beside them knows that shape, whatever became of the front end's source.

    Raises:
        InputError: an unknown key or impossible value, or a front end that cannot be loaded.
    """
    config = HybridASRConfig.from_json_file(arguments.config_path)
    if arguments.wav2vec2_model_name is not None:
        config.use_wav2vec2_encoder, config.wav2vec2_model_name = True, arguments.wav2vec2_model_name
    for key in OVERRIDES:
        if getattr(arguments, key) is not None:
            setattr(config, key, getattr(arguments, key))
    if arguments.ttt_training == "none":
        if arguments.enable_ttt:
            raise InputError(
                "--enable_ttt asks for joint training and --ttt_training none for none: leave one of them out."
            )
        config.enable_ttt = False  # of the configuration, where it would mean joint training
    _prepare_for_ttt(config)
    _check_outer_loss(config, arguments)
    if config.use_wav2vec2_encoder and config.wav2vec2_model_name is None:
        raise InputError("use_wav2vec2_encoder is set but wav2vec2_model_name is not: name a checkpoint or unset it.")
    if config.freeze_encoder and not config.use_wav2vec2_encoder and arguments.init_checkpoint is None:
        raise InputError("freeze_encoder would freeze random weights: give --wav2vec2_model_name or --init_checkpoint.")
    if config.use_wav2vec2_encoder and arguments.init_checkpoint is None:
        shape = _shape_in_the_run(resume_from) or front_end_config_from_pretrained(config.wav2vec2_model_name)
        for key, value in shape.items():
            setattr(config, key, value)
    config.check_values()
    return config


def _shape_in_the_run(checkpoints: Sequence[Path]) -> dict | None:
    """The front end's keys in the configuration beside a run's checkpoints, if there is one."""
    if not checkpoints or not (path := checkpoints[0].with_name("config.json")).is_file():
        return None
    try:
        values = SimpleNamespace(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from None
    return front_end_values(values, source=str(path))


def _prepare_for_ttt(config: HybridASRConfig) -> None:
    """The head where the loss needs it; in meta-training the loss's own defaults where nothing was said.

    Raises:
        InputError: an impossible value.
    """
    settings = TTTSettings.of(config)
    loss = settings.loss
    if config.ttt_training == "none" and config.enable_ttt:
        config.ttt_training = "joint"
    elif config.ttt_training != "none":
        config.enable_ttt = loss.head
    if config.ttt_training != "none" and loss.statistics:
        raise InputError(
            f"The TTT loss {config.ttt_loss_type} needs a trained model's statistics: it cannot be trained with."
        )
    if config.ttt_training == "meta":
        _, first = loss.terms[0]
        config.ttt_parameters = config.ttt_parameters or ",".join(first.parameters)
        config.ttt_learning_rate = config.ttt_learning_rate or settings.default_rate(hybrid=True)
        if config.ttt_steps < 1:
            raise InputError("Meta-training needs --ttt_steps of 1 or more.")


def _check_outer_loss(config: HybridASRConfig, arguments: argparse.Namespace) -> None:
    if arguments.ttt_outer_loss is not None and config.ttt_training != "meta":
        raise InputError("--ttt_outer_loss says what counts after the step of --ttt_training meta, and needs it.")
    has_noise = (arguments.noise_dir is not None or arguments.noise_colours) and arguments.noise_prob > 0
    if config.trains_with_clean_views and not has_noise:
        raise InputError(
            "The outer loss clean_view needs noise to undo: --noise_dir or --noise_colours, and a --noise_prob above 0."
        )


def make_model(
    config: HybridASRConfig, processor: HybridASRProcessor, arguments: argparse.Namespace, resumed: bool = False
) -> HybridASRForCTC:
    """A model with random weights, with a pretrained front end, or with all weights of ``--init_checkpoint``.

    A resumed run has its weights in its checkpoint, and needs no source of earlier ones any more.
    """
    config.ctc_vocab_size = len(processor.vocabulary)
    config.ctc_blank_id = processor.tokenizer.pad_token_id
    model = HybridASRForCTC(config)
    if arguments.init_checkpoint is not None and not resumed:
        _take_weights(model, processor, arguments.init_checkpoint)
    elif config.use_wav2vec2_encoder and not resumed:
        model.front_end.load_pretrained(config.wav2vec2_model_name)
    if arguments.ttt_rates_only:
        _leave_only_rates_to_learn(model, arguments)
    return model


def _leave_only_rates_to_learn(model: HybridASRForCTC, arguments: argparse.Namespace) -> None:
    if model.ttt_rates is None or arguments.init_checkpoint is None:
        raise InputError("--ttt_rates_only needs --ttt_training meta and the --init_checkpoint whose model is kept.")
    model.requires_grad_(False)
    model.ttt_rates.requires_grad_(True)


def _take_weights(model: HybridASRForCTC, processor: HybridASRProcessor, name_or_path: str) -> None:
    source = load_hybrid_checkpoint(name_or_path)
    if source.processor.vocabulary != processor.vocabulary:
        raise InputError(f"The vocabulary of {name_or_path} differs from this run's; use --vocabulary {name_or_path}.")
    missing, unexpected = [], []
    try:
        missing, unexpected = model.load_state_dict(source.model.state_dict(), strict=False)
    except RuntimeError as error:
        raise InputError(
            f"The weights of {name_or_path} have other shapes: {' '.join(str(error).split())[:200]}"
        ) from None
    wrong = [name for name in (*missing, *unexpected) if not name.startswith(("masked_prediction.", "ttt_rates."))]
    if wrong:
        raise InputError(f"The weights of {name_or_path} do not fit the configuration: {wrong[0]} has no counterpart.")
