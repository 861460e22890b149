"""From the command line to a recogniser and a list of utterances."""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path

import torch

from lact_asr.audio import find_audio_files, read_audio
from lact_asr.checkpoint import LoadedCheckpoint, load_checkpoint
from lact_asr.configuration_hybrid_asr import HybridASRConfig
from lact_asr.data.corpora import Corpus, load_corpus, transcript
from lact_asr.errors import InputError
from lact_asr.inference.decoding import DEFAULT_LM_WEIGHT, DEFAULT_WORD_SCORE, Decoder, make_decoder
from lact_asr.inference.evaluation import Utterance
from lact_asr.inference.language_model import LanguageModel, load_language_model
from lact_asr.inference.recogniser import Recogniser
from lact_asr.inference.ttt_procedure import TTTSettings

LANGUAGE_MODEL_NAME = "lm.arpa"
TUNED_WEIGHTS_NAME = "lm_weights.json"


def choose_device(name: str) -> torch.device:
    """The device for ``--device``.

    Raises:
        InputError: a GPU was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda was asked for but PyTorch sees no GPU.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def make_recogniser(arguments: argparse.Namespace) -> Recogniser:
    """Load the checkpoint and its language model and set up decoder and TTT."""
    device = choose_device(arguments.device)
    checkpoint = load_checkpoint(arguments.checkpoint)
    decoder = _decoder(arguments, checkpoint)
    settings = ttt_settings(arguments, checkpoint.model.config) if arguments.use_ttt else None
    return Recogniser(checkpoint, decoder, settings, device, arguments.move_emission_to_cpu)


def ttt_settings(arguments: argparse.Namespace, config: HybridASRConfig) -> TTTSettings:
    """The command line's TTT flags, with the model's configuration as defaults."""

    def choose(flag, default):
        return default if flag is None else flag

    parameters = arguments.ttt_parameters
    return TTTSettings(
        loss_type=choose(arguments.ttt_loss_type, config.ttt_loss_type),
        steps=choose(arguments.ttt_steps, config.ttt_steps),
        parameters=None if parameters is None else tuple(parameters.split(",")),
        learning_rate=arguments.ttt_learning_rate,
        mask_prob=choose(arguments.ttt_mask_prob, config.ttt_mask_prob),
        mask_length=config.ttt_mask_length,
        chunk_size=choose(arguments.ttt_chunk_size, config.ttt_chunk_size),
        seed=arguments.seed,
    )


def checkpoint_folder(checkpoint: str) -> Path:
    """The folder that a checkpoint's companions lie in."""
    path = Path(checkpoint)
    return path if path.is_dir() else path.parent


def find_language_model(lm_path: str, checkpoint: str) -> LanguageModel | None:
    """The language model of ``--lm_path``: a file, "none", or "auto" for the one beside the checkpoint if any."""
    if lm_path == "none":
        return None
    if lm_path != "auto":
        return load_language_model(lm_path)
    beside = checkpoint_folder(checkpoint) / LANGUAGE_MODEL_NAME
    return load_language_model(beside) if beside.is_file() else None


def _decoder(arguments: argparse.Namespace, checkpoint: LoadedCheckpoint) -> Decoder:
    vocabulary, blank_id = checkpoint.processor.vocabulary, checkpoint.model.config.ctc_blank_id
    if arguments.greedy:
        return make_decoder(vocabulary, blank_id)
    language_model = find_language_model(arguments.lm_path, arguments.checkpoint)
    tuned = _tuned_weights(arguments.checkpoint) if arguments.lm_path == "auto" else {}
    lm_weight = tuned.get("lm_weight", DEFAULT_LM_WEIGHT) if arguments.lm_weight is None else arguments.lm_weight
    word_score = tuned.get("word_score", DEFAULT_WORD_SCORE) if arguments.word_score is None else arguments.word_score
    return make_decoder(
        vocabulary,
        blank_id,
        beam_size=arguments.beam_size,
        language_model=language_model,
        lm_weight=lm_weight,
        word_score=word_score,
        beam_threshold=arguments.beam_threshold,
    )


def _tuned_weights(checkpoint: str) -> dict[str, float]:
    """What `lact_asr.inference.tune_language_model` wrote beside the checkpoint; empty if it did not run."""
    path = checkpoint_folder(checkpoint) / TUNED_WEIGHTS_NAME
    if not path.is_file():
        return {}
    try:
        return {key: float(value) for key, value in json.loads(path.read_text(encoding="utf-8"))["best"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} does not hold tuned language-model weights; remove it or tune again.") from None


def list_utterances(arguments: argparse.Namespace) -> tuple[list[Utterance], Corpus | None]:
    """What to transcribe, and the corpus it comes from if any.

    Raises:
        InputError: no such file, folder or subset.
    """
    if arguments.data_dir is not None:
        corpus = load_corpus(arguments.data_dir, arguments.subset, arguments.dataset_type)
        utterances = corpus_utterances(corpus)
    else:
        corpus = None
        paths = arguments.audio_file or find_audio_files(arguments.audio_dir)
        utterances = [Utterance(str(path), None, functools.partial(read_audio, path)) for path in paths]
    return utterances[: arguments.max_samples], corpus


def corpus_utterances(corpus: Corpus) -> list[Utterance]:
    """One `Utterance` for each cut of a corpus."""
    return [
        Utterance(
            cut.id,
            transcript(cut),
            functools.partial(
                read_audio,
                cut.recording.sources[0].source,
                cut.start,
                None if cut.end >= cut.recording.duration else cut.duration,
            ),
        )
        for cut in corpus.cuts
    ]
