"""The inference command's flags."""

from __future__ import annotations

import argparse
from pathlib import Path

from lact_asr.command_line import program_name
from lact_asr.errors import InputError
from lact_asr.inference.decoder_names import DECODERS
from lact_asr.inference.transcript_formats.formats import FORMATS, FORMATS_HELP, choose_format
from lact_asr.inference.ttt.recipe_files import read_recipe, recipe_summaries
from lact_asr.shared_flags import add_checkpoint, add_dataset_type, positive_float
from lact_asr.ttt_names import (
    CONTROLS,
    FEATURE_OFFSET,
    KEEP,
    LOSSES,
    OPTIMIZERS,
    PARAMETER_GROUPS,
    SCOPES,
    SEARCH,
    parse_groups,
    parse_loss,
)

DESCRIPTION = """Transcribe recordings or score a corpus subset, greedily or by KenLM beam search, with or without
test-time training (TTT).

  one file or several   --audio_file a.wav b.flac
  a folder              --audio_dir recordings/
  a corpus subset       --data_dir LIBRISPEECH --subset test-clean

Files of any length are transcribed in bounded memory: those longer than --segment_seconds are cut at silences.
Files may have any rate, channel count and container that libsndfile reads. A file that cannot be read is reported and
the rest go on. TTT changes nothing that outlives the utterance, unless --ttt_scope carries it to the next, and the
transcript without it is always kept beside."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; see ``--help`` for what each flag means.

    Raises:
        InputError: flags that do not go together.
    """
    parser = argparse.ArgumentParser(
        prog=program_name("hybrid_asr_inference.py"),
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--freeze_fast_weights",
        action="store_true",
        help="a control: apply the learned initial fast weights to every utterance as they are, without updating them",
    )
    _add_input(parser.add_argument_group("what to transcribe"))
    _add_decoding(parser.add_argument_group("decoding"))
    _add_long_recordings(parser.add_argument_group("long recordings"))
    _add_ttt(parser.add_argument_group("test-time training"))
    _add_run(parser.add_argument_group("run"))
    arguments = parser.parse_args(argv)
    arguments.output_format = choose_format(arguments.output_format, arguments.output)
    _check(arguments)
    return arguments


def _add_input(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--audio_file", nargs="+", type=Path, default=None, help="one recording or several")
    group.add_argument("--audio_dir", type=Path, default=None, help="every recording in a folder")
    group.add_argument("--data_dir", type=Path, default=None, help="a corpus, with --subset")
    group.add_argument("--subset", default=None, help="subset of the corpus, e.g. test-clean, or of a manifest folder")
    add_dataset_type(group)
    group.add_argument("--max_samples", type=int, default=None, help="only the first so many utterances")


def _add_decoding(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--beam_size", type=int, default=50, help="beams; 1 without a language model is greedy (default: %(default)s)"
    )
    group.add_argument(
        "--greedy", action="store_true", help="the most likely class of each frame; no beams, no language model"
    )
    group.add_argument(
        "--lm_path",
        default="auto",
        metavar="FILE|none",
        help="ARPA or KenLM binary; auto takes lm.arpa beside the checkpoint if it is there (default: %(default)s)",
    )
    group.add_argument(
        "--lm_weight",
        type=float,
        default=None,
        help="weight of the language model (default: tuned value beside the checkpoint, else 0.5)",
    )
    group.add_argument(
        "--word_score",
        type=float,
        default=None,
        help="added for each word (default: tuned value beside the checkpoint, else 1.5)",
    )
    group.add_argument(
        "--beam_threshold",
        type=float,
        default=10.0,
        help="drop beams this far below the best, in nats (default: %(default)s)",
    )
    group.add_argument(
        "--decoder",
        choices=tuple(DECODERS),
        default="pyctcdecode",
        help="which library searches the beams. "
        + "; ".join(f"{name}: {meaning}" for name, meaning in DECODERS.items())
        + " (default: %(default)s)",
    )
    group.add_argument(
        "--hot_words", nargs="+", default=(), metavar="WORD", help="names and terms to listen for, known or not"
    )
    group.add_argument(
        "--hot_word_weight", type=float, default=10.0, help="added for each hot word, in nats (default: %(default)s)"
    )
    group.add_argument(
        "--n_best",
        type=int,
        default=1,
        help="transcripts to give for each recording, best first; one where it was cut at silences (default: %(default)s)",
    )
    group.add_argument(
        "--decoding_processes",
        type=int,
        default=0,
        help="decode in so many processes, each with its own language model, while the model goes on; results do not depend "
        "on it (default: %(default)s, in turn with the model)",
    )
    group.add_argument(
        "--move_emission_to_cpu",
        action="store_true",
        help="move each utterance's log-probabilities to the CPU in one piece before decoding, to free the GPU",
    )


def _add_long_recordings(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--segment_seconds",
        type=float,
        default=30.0,
        help="files longer than this (utterances of a corpus: longer than this and a minute) are cut at silences into pieces of at most this; --batch_size pieces are transcribed at once, "
        "and TTT adapts to each; inf never cuts (default: %(default)s)",
    )
    group.add_argument(
        "--pause_seconds",
        type=float,
        default=0.5,
        help="a silence this long ends a piece, as it ends the utterances of most corpora; inf makes pieces as long as they may be "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--voice_activity",
        choices=("auto", "silero", "energy"),
        default="auto",
        help="what finds silence: silero-vad (auto, where it is installed), or the signal's power",
    )
    group.add_argument(
        "--carry_fast_weights",
        type=float,
        nargs="?",
        const=1.0,
        default=None,
        metavar="DECAY",
        help="start each piece of a long recording from the fast weights that the one before it left: from W0 + DECAY (W - W0), "
        "with W0 the learned initial ones (DECAY of 1 where none is given); whether that helps: docs/long_recordings.md",
    )


def _add_ttt(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--use_ttt", action="store_true", help="adapt to each utterance before it is decoded")
    group.add_argument(
        "--ttt_recipe",
        default=None,
        metavar="NAME|FILE",
        help="a published method, or a JSON file like those in inference/recipes; other flags of TTT replace its values, in "
        "each of its stages. " + "; ".join(f"{name}: {summary}" for name, summary in recipe_summaries().items()),
    )
    group.add_argument(
        "--ttt_scope",
        choices=tuple(SCOPES),
        default=None,
        help="; ".join(f"{name}: {meaning}" for name, meaning in SCOPES.items())
        + " (default: the recipe's, else utterance)",
    )
    group.add_argument(
        "--ttt_decay",
        type=float,
        default=None,
        help="with a scope of speaker or stream, how much of what was learned is left after each utterance, 0 to 1 "
        "(default: the recipe's, else 1)",
    )
    group.add_argument(
        "--ttt_loss_type",
        default=None,
        metavar="[WEIGHT*]LOSS[+…]",
        help="a loss or a weighted sum, as masked_prediction+0.3*entropy (default: the model's; entropy where that "
        "needs a masked-prediction head and the model has none). "
        + "; ".join(f"{name}: {meaning}" for name, meaning in LOSSES.items())
        + "; MODULE:FUNCTION: one of your own (docs/own_objective.md)",
    )
    group.add_argument("--ttt_steps", type=int, default=None, help="optimiser steps (default: the model's)")
    group.add_argument(
        "--ttt_mask_prob", type=float, default=None, help="share of frames to mask (default: the model's)"
    )
    group.add_argument(
        "--ttt_chunk_size",
        type=int,
        default=None,
        help="frames whose loss is computed at a time, -1 for all (default: the model's)",
    )
    group.add_argument(
        "--ttt_parameters",
        default=None,
        metavar="A,B,…",
        help=f"what adapts: {', '.join((*PARAMETER_GROUPS, FEATURE_OFFSET))} (one vector added to the front end's output); "
        "default: by loss",
    )
    group.add_argument(
        "--ttt_optimizer",
        choices=(*OPTIMIZERS, SEARCH),
        default=None,
        help=f"muon: for matrices, AdamW for the rest; {SEARCH}: a search for a {FEATURE_OFFSET}, without gradients "
        "(default: the model's)",
    )
    group.add_argument(
        "--ttt_learning_rate",
        type=float,
        default=None,
        help="of the optimizer (default: what meta-training learned, else by loss, for adamw and muon; sgd has none)",
    )
    group.add_argument(
        "--ttt_constant_updates",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="let no gradient flow through the fast weights' updates (a first-order approximation): a step costs less "
        "(default: yes for the loss entropy on its own parameters, unless the model was meta-trained)",
    )
    group.add_argument(
        "--ttt_frozen_layers",
        type=int,
        default=None,
        metavar="N",
        help="the front end's N lowest layers do not adapt, whatever --ttt_parameters says: they run once an utterance, so a step costs "
        "less (default: 1 where updates are constant by default, else 0)",
    )
    group.add_argument(
        "--ttt_max_entropy",
        type=positive_float,
        default=None,
        metavar="SHARE",
        help="leave an utterance as it is where the mean entropy of its non-blank frames is above this share of the largest possible: "
        "who has most words wrong gets surer of wrong ones (default: 0.25 for the loss entropy, none for others; 1 is none)",
    )
    group.add_argument(
        "--ttt_keep",
        choices=tuple(KEEP),
        default=None,
        help="which adapted transcripts to keep. "
        + "; ".join(f"{name}: {what}" for name, what in KEEP.items())
        + " (default: likelier with a language model, else always)",
    )
    group.add_argument(
        "--ttt_control",
        choices=tuple(CONTROLS),
        default=None,
        help="for experiments, a step that must not help. "
        + "; ".join(f"{name}: {what}" for name, what in CONTROLS.items()),
    )


def _add_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output",
        type=Path,
        default=None,
        metavar="FILE|FOLDER",
        help="where transcripts go; the suffix says the format, JSON-lines results where it says none. A subset's results "
        "go to results_SUBSET….jsonl beside the checkpoint where --output is not their file (default: stdout)",
    )
    group.add_argument(
        "--output_format",
        choices=tuple(FORMATS),
        default=None,
        help=f"{FORMATS_HELP}. For srt, vtt and textgrid, a name without that suffix is a folder (default: by --output)",
    )
    group.add_argument(
        "--word_times",
        action="store_true",
        help="write each hypothesis' words with start and end in seconds and the decoder's confidence, too",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a subset's results file beside the checkpoint though other settings wrote it; one that --output names "
        "is replaced anyway",
    )
    group.add_argument("--resume", action="store_true", help="keep what an interrupted run wrote to --output and go on")
    group.add_argument(
        "--batch_size",
        type=int,
        default=1,
        help="recordings that are transcribed, and adapted to, at once; results do not depend on it (default: %(default)s)",
    )
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    group.add_argument("--seed", type=int, default=0, help="of TTT's masks (default: %(default)s)")


def ignored_flags(arguments: argparse.Namespace) -> list[str]:
    """Flags of test-time training that were given without ``--use_ttt``."""
    if arguments.use_ttt:
        return []
    return [f"--{name}" for name, value in vars(arguments).items() if name.startswith("ttt_") and value is not None]


def _check(arguments: argparse.Namespace) -> None:
    sources = [arguments.audio_file, arguments.audio_dir, arguments.data_dir]
    if sum(source is not None for source in sources) != 1:
        raise InputError("Give exactly one of --audio_file, --audio_dir and --data_dir.")
    if arguments.data_dir is not None and not arguments.subset:
        raise InputError("--data_dir needs --subset.")
    if arguments.data_dir is None and arguments.subset:
        raise InputError("--subset needs --data_dir.")
    if arguments.max_samples is not None and arguments.max_samples < 1:
        raise InputError(f"--max_samples must be 1 or more, not {arguments.max_samples}.")
    if arguments.ttt_loss_type is not None:
        parse_loss(arguments.ttt_loss_type)
    if arguments.ttt_recipe is not None:
        read_recipe(arguments.ttt_recipe)
    if arguments.ttt_parameters is not None:
        parse_groups(arguments.ttt_parameters)
    if arguments.batch_size < 1:
        raise InputError(f"--batch_size must be 1 or more, not {arguments.batch_size}.")
    if arguments.beam_size < 1:
        raise InputError(f"--beam_size must be 1 or more, not {arguments.beam_size}.")
    if arguments.decoding_processes < 0:
        raise InputError(f"--decoding_processes must be 0 or more, not {arguments.decoding_processes}.")
    if arguments.n_best < 1:
        raise InputError(f"--n_best must be 1 or more, not {arguments.n_best}.")
    if arguments.greedy and (arguments.n_best > 1 or arguments.hot_words):
        raise InputError(
            "--greedy has one transcript and knows no hot words: leave out --greedy, or --n_best and --hot_words."
        )
    if arguments.n_best > arguments.beam_size and not arguments.greedy:
        raise InputError(f"--n_best {arguments.n_best} needs --beam_size {arguments.n_best} or more.")
    if arguments.n_best > 1 and arguments.output_format not in (None, "jsonl"):
        raise InputError(f"--output_format {arguments.output_format} holds one transcript: leave out --n_best.")
    if not arguments.segment_seconds >= 4:  # half of it is searched for a pause
        raise InputError(f"--segment_seconds must be 4 or more (inf never cuts), not {arguments.segment_seconds:g}.")
    if not arguments.pause_seconds >= 0.2:  # shorter silences are parts of words
        raise InputError(f"--pause_seconds must be 0.2 or more, not {arguments.pause_seconds:g}.")
    if arguments.carry_fast_weights is not None and arguments.data_dir is not None:
        raise InputError("--carry_fast_weights is for the pieces of long files; utterances of a corpus start afresh.")
    if arguments.carry_fast_weights is not None and arguments.use_ttt:
        raise InputError(
            "--carry_fast_weights does not go with --use_ttt, which starts from the trained fast weights: leave out one of them."
        )
    if arguments.greedy and arguments.lm_path not in ("auto", "none"):
        raise InputError("--greedy uses no language model: leave out --greedy or --lm_path.")
    if arguments.resume and arguments.overwrite:
        raise InputError("--resume goes on with the results that --overwrite would replace: leave out one of them.")
    in_results_file = arguments.output is not None and arguments.output_format in (None, "jsonl")
    if arguments.resume and arguments.data_dir is None and not in_results_file:
        if arguments.output is not None:
            raise InputError(f"--resume goes on with JSON-lines results only, not with {arguments.output_format}.")
        raise InputError("--resume needs --output, the JSON-lines results file to go on with.")
    if arguments.data_dir is not None and arguments.output is None and arguments.output_format not in (None, "jsonl"):
        raise InputError(f"--output_format {arguments.output_format} of a corpus needs --output.")
