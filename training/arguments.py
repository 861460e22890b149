"""The training command's flags."""

from __future__ import annotations

import argparse
import functools
import math
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from lact_asr.audio import MIN_SAMPLES
from lact_asr.command_line import program_name
from lact_asr.data.download import CORPORA
from lact_asr.errors import InputError
from lact_asr.shared_flags import (
    add_dataset_type,
    checked,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    share,
)
from lact_asr.training.trackers import TRACKERS
from lact_asr.ttt_names import (
    FEATURE_OFFSET,
    LOSSES,
    OPTIMIZERS,
    OUTER_LOSSES,
    PARAMETER_GROUPS,
    TRAININGS,
    parse_groups,
    parse_loss,
)

NOISE_COLOURS = ("white", "pink", "brown")
_NEGATIVE_NUMBERS = re.compile(r"-[.\d]")

DESCRIPTION = """Train a hybrid LaCT + Wav2Vec2 model with CTC.

Writes to --output_dir: best_model.pt (by validation WER; self-contained), checkpoint_STEP.pt (to resume from),
lm.arpa (an n-gram model of the training transcripts), training_log.jsonl, TensorBoard files, training_curves.png (with
matplotlib), run.json, config.json, vocab.json, left_out.json (utterances that cannot be used, and why) and test_results.json.
SIGTERM or Ctrl-C saves a checkpoint and stops. --resume_from_checkpoint goes on from there, or after a crash from the
last checkpoint, and ends with the very weights (on the CPU) of a run that was never stopped."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; see ``--help`` for what each flag means."""
    parser = argparse.ArgumentParser(
        prog=program_name("train_hybrid_asr.py"),
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_data(parser.add_argument_group("data"))
    _add_model(parser.add_argument_group("model"))
    _add_ttt(parser.add_argument_group("preparing for test-time training"))
    _add_optimisation(parser.add_argument_group("optimisation"))
    _add_run(parser.add_argument_group("run"))
    arguments = parser.parse_args(_join_negative_numbers(sys.argv[1:] if argv is None else argv))
    if arguments.batch_size is None and arguments.max_batch_duration is None:
        arguments.batch_size = 8
    return arguments


def _join_negative_numbers(argv: list[str]) -> list[str]:
    """--flag -5,20 as --flag=-5,20: argparse takes such a value for a flag."""
    joined: list[str] = []
    for word in argv:
        if joined and _NEGATIVE_NUMBERS.match(word) and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _add_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data_dir",
        type=Path,
        required=True,
        help="the corpus: a LibriSpeech folder, or the folder of JSON-lines manifests",
    )
    add_dataset_type(group)
    group.add_argument(
        "--download",
        choices=tuple(CORPORA),
        default=None,
        help="first download those of the named subsets that --data_dir lacks (python -m lact_asr.data.download does only that)",
    )
    group.add_argument(
        "--train_subset",
        default="train-clean-100",
        help="subset, or several with commas; train-960 is all of LibriSpeech; for manifests NAME of NAME.jsonl (default: %(default)s)",
    )
    group.add_argument(
        "--val_subset", default="dev-clean", help="validated on greedily during training (default: %(default)s)"
    )
    group.add_argument("--test_subset", default=None, help="scored once at the end with the best model")
    group.add_argument(
        "--extra_train_data",
        action="append",
        default=[],
        metavar="[WEIGHT*]TYPE:FOLDER:SUBSETS",
        help="more training data, e.g. 0.5*librispeech:generated:train-generated; an epoch has each of its utterances WEIGHT "
        "times (default: once), as it has those of --train_subset once; may be repeated",
    )
    group.add_argument(
        "--batch_size",
        type=positive_int,
        default=None,
        help="utterances a batch and process (default: 8, or as many as --max_batch_duration allows)",
    )
    group.add_argument(
        "--max_batch_duration",
        type=positive_float,
        default=None,
        metavar="SECONDS",
        help="seconds of audio a batch and process, padding included: more of short utterances, fewer of long ones",
    )
    group.add_argument(
        "--num_buckets",
        type=positive_int,
        default=30,
        help="duration buckets, so that little is padded (default: %(default)s)",
    )
    group.add_argument(
        "--max_audio_duration",
        type=positive_float,
        default=None,
        metavar="SECONDS",
        help="leave longer training utterances out, counted",
    )
    group.add_argument(
        "--crop_samples",
        type=_crop_length,
        default=250_000,
        help="crop training audio to its first so many samples, while transcripts stay whole; 0: never (default: %(default)s, "
        "15.6 s, beyond which lies a fifth of LibriSpeech)",
    )
    group.add_argument(
        "--speed_factors",
        type=_floats,
        default=(1.0,),
        metavar="A,B,…",
        help="play each training utterance at one of these speeds, drawn each epoch (default: 1.0)",
    )
    group.add_argument(
        "--noise_dir", type=Path, default=None, help="mix recordings from this folder into training audio"
    )
    group.add_argument(
        "--noise_colours",
        type=_names(NOISE_COLOURS),
        default=(),
        metavar="A,B,…",
        help=f"mix Gaussian noise of these colours into training audio: {', '.join(NOISE_COLOURS)}",
    )
    group.add_argument(
        "--noise_snr_db",
        type=_range,
        default=(5.0, 20.0),
        metavar="LOW,HIGH",
        help="range of signal-to-noise ratios to draw from (default: 5,20)",
    )
    group.add_argument(
        "--noise_prob", type=share, default=0.5, help="share of training utterances with noise (default: %(default)s)"
    )
    group.add_argument(
        "--rir_dir",
        type=Path,
        default=None,
        help="put training audio into the rooms whose impulse responses (recordings, each channel one) this folder holds, "
        "before noise is added",
    )
    group.add_argument(
        "--rir_prob", type=share, default=0.5, help="share of training utterances in rooms (default: %(default)s)"
    )
    group.add_argument(
        "--num_workers",
        type=non_negative_int,
        default=None,
        help="processes that read audio; 0 reads in the training process (default: 0 on a CPU, with a GPU up to 8, as there are cores)",
    )
    group.add_argument(
        "--cache_gigabytes",
        type=non_negative_float,
        default=2.0,
        help="keep decoded training audio in memory, up to so much in each training process, whose workers share it (default: %(default)s)",
    )
    group.add_argument(
        "--vocabulary",
        default="corpus",
        metavar="corpus|NAME_OR_FOLDER",
        help="from the training transcripts, or of a pretrained checkpoint's tokenizer (default: %(default)s)",
    )


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--config_path", type=Path, required=True, help="model configuration, e.g. configs/hybrid_asr_config.json"
    )
    group.add_argument(
        "--wav2vec2_model_name",
        default=None,
        help="start the front end from this Wav2Vec2, HuBERT, WavLM or data2vec checkpoint (folder or hub name)",
    )
    group.add_argument("--freeze_encoder", action="store_true", default=None, help="do not train the front end")
    group.add_argument(
        "--init_checkpoint",
        default=None,
        help="start from the weights of this checkpoint (a new run: steps count from 0)",
    )
    group.add_argument(
        "--front_end_warm_start_steps",
        type=non_negative_int,
        default=0,
        help="first let a random front end learn log-mel spectrograms for so many steps: CTC from scratch then starts "
        "learning much earlier (default: %(default)s)",
    )
    group.add_argument(
        "--lm_order",
        type=int,
        choices=(0, 2, 3, 4, 5),
        default=3,
        help="order of the n-gram model of the training transcripts; 0: none (default: %(default)s)",
    )


def _add_ttt(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--enable_ttt",
        action="store_true",
        default=None,
        help="add the masked-prediction loss and its head: --ttt_training joint with --ttt_loss_type masked_prediction",
    )
    group.add_argument(
        "--ttt_training",
        choices=tuple(TRAININGS),
        default=None,
        help="; ".join(f"{name}: {meaning}" for name, meaning in TRAININGS.items())
        + " (default: the configuration's, where none with enable_ttt means joint; none on the command line unsets enable_ttt)",
    )
    group.add_argument(
        "--ttt_loss_type",
        type=_checked_by(functools.partial(parse_loss, own=False)),
        default=None,
        metavar="[WEIGHT*]LOSS[+…]",
        help=f"{', '.join(LOSSES)}, or a weighted sum (default: the configuration's)",
    )
    group.add_argument(
        "--ttt_parameters",
        type=_checked_by(parse_groups),
        default=None,
        metavar="A,B,…",
        help=f"what adapts: {', '.join((*PARAMETER_GROUPS, FEATURE_OFFSET))} (default: by loss)",
    )
    group.add_argument("--ttt_optimizer", choices=OPTIMIZERS, default=None, help="of the step (default: adamw)")
    group.add_argument(
        "--ttt_learning_rate",
        type=positive_float,
        default=None,
        help="of the step; meta-training starts from it and learns one for each tensor (default: by loss)",
    )
    group.add_argument("--ttt_steps", type=non_negative_int, default=None, help="steps (default: the configuration's)")
    group.add_argument("--ttt_mask_prob", type=share, default=None, help="share of frames to mask (likewise)")
    group.add_argument("--ttt_mask_length", type=positive_int, default=None, help="frames a span (likewise)")
    group.add_argument(
        "--ttt_loss_weight", type=non_negative_float, default=None, help="of the self-supervised loss (likewise)"
    )
    group.add_argument(
        "--ttt_after_weight", type=non_negative_float, default=None, help="meta: of the loss after the step (likewise)"
    )
    group.add_argument(
        "--ttt_outer_loss",
        choices=tuple(OUTER_LOSSES),
        default=None,
        help="meta: what counts after the step; " + "; ".join(f"{name}: {text}" for name, text in OUTER_LOSSES.items()),
    )
    group.add_argument(
        "--ttt_first_order",
        action="store_true",
        default=None,
        help="meta: take the step's gradient as a constant, which is cheaper",
    )
    group.add_argument(
        "--ttt_rates_only",
        action="store_true",
        help="meta: learn the step's rates and leave the model of --init_checkpoint as it is; best on voices and noises "
        "that it was not trained on",
    )


def _add_optimisation(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--max_epochs", type=positive_int, default=25, help="default: %(default)s")
    group.add_argument(
        "--max_steps", type=positive_int, default=None, help="stop after so many optimiser steps, whatever the epoch"
    )
    group.add_argument(
        "--optimizer",
        choices=("adamw", "muon"),
        default="adamw",
        help="muon: Muon for the matrices behind the front end but the output layer's, AdamW for the rest, at the same learning rate (default: %(default)s)",
    )
    group.add_argument("--peak_lr", type=positive_float, default=5e-4, help="default: %(default)s")
    group.add_argument(
        "--encoder_lr_scale",
        type=non_negative_float,
        default=None,
        help="the front end learns at peak_lr times this (default: the configuration's)",
    )
    group.add_argument(
        "--warmup_steps",
        type=non_negative_int,
        default=10_000,
        help="linear from 10 %% to 100 %% of the peak, then cosine to 1 %% (default: %(default)s)",
    )
    group.add_argument("--weight_decay", type=non_negative_float, default=0.01, help="default: %(default)s")
    group.add_argument(
        "--max_grad_norm", type=positive_float, default=1.0, help="clip gradients to this norm (default: %(default)s)"
    )
    group.add_argument("--gradient_accumulation_steps", type=positive_int, default=1, help="default: %(default)s")
    group.add_argument(
        "--mixed_precision",
        nargs="?",
        const="auto",
        choices=("auto", "bf16", "fp16", "no"),
        default=None,
        help="by itself or auto: bfloat16 (float16 on older GPUs) where the device has it, float32 on CPUs "
        "(default: of accelerate's configuration if there is one, else no)",
    )
    group.add_argument(
        "--gradient_checkpointing",
        action="store_true",
        help="keep only the layers' inputs for the backward pass and compute the rest again: less memory, more time",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the front end and each block: faster steps after a first one that takes a minute or more",
    )


def _add_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--output_dir", type=Path, required=True, help="the run's folder; made if needed")
    group.add_argument(
        "--resume_from_checkpoint",
        nargs="?",
        const="last",
        default=None,
        metavar="auto|FILE|FOLDER",
        help="go on from the newest readable checkpoint of --output_dir, or of FOLDER, or from FILE; auto: likewise, but start "
        "if --output_dir has none, so that a cluster can give every start the same command",
    )
    group.add_argument("--seed", type=non_negative_int, default=0, help="default: %(default)s")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    group.add_argument("--logging_steps", type=positive_int, default=20, help="default: %(default)s")
    group.add_argument(
        "--trackers",
        type=_names(TRACKERS),
        default=("tensorboard",),
        metavar="A,B,…",
        help=f"where to watch the run, besides training_log.jsonl: {', '.join(TRACKERS)} (pip install wandb), or none "
        "(default: tensorboard)",
    )
    group.add_argument(
        "--eval_steps",
        type=positive_int,
        default=None,
        help="validate after so many steps (default: after each epoch)",
    )
    group.add_argument(
        "--save_steps",
        type=positive_int,
        default=500,
        help="write a checkpoint after so many steps (default: %(default)s)",
    )
    group.add_argument(
        "--keep_checkpoints",
        type=positive_int,
        default=2,
        metavar="N",
        help="delete all but the last N; while one is written there are N + 1 (default: %(default)s)",
    )
    group.add_argument(
        "--max_skipped_steps",
        type=positive_int,
        default=20,
        metavar="N",
        help="stop after N steps in a row that were left out because the loss or a gradient was not finite (default: "
        "%(default)s; float16 needs up to 16 to find its scale)",
    )


def _checked_by(parse: Callable[[str], object]) -> Callable[[str], str]:
    """The text as it is, if it can be parsed."""

    def check(text: str) -> str:
        try:
            parse(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return check


def _crop_length(text: str) -> int:
    return checked(int, text, lambda value: value == 0 or value >= MIN_SAMPLES, f"0, or at least {MIN_SAMPLES}")


def _names(allowed: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Some of the allowed names, with commas; "none" is none of them."""

    def parse(text: str) -> tuple[str, ...]:
        names = () if text == "none" else tuple(text.split(","))
        if unknown := set(names) - set(allowed):
            raise argparse.ArgumentTypeError(f"{min(unknown)!r} is none of {', '.join(allowed)}")
        return names

    return parse


def _floats(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers with commas")
    return values


def _range(text: str) -> tuple[float, float]:
    values = _floats(text)
    if len(values) != 2 or values[0] > values[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW,HIGH: two numbers, the second no less than the first")
    return values
