"""From the command line to data loaders: corpora are read, checked, reported and batched."""

from __future__ import annotations

import argparse
import math
import os
from collections import ChainMap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from lhotse import CutSet

from lact_asr.checkpoint import load_checkpoint
from lact_asr.data.augmentation import WaveformAugmentation
from lact_asr.data.batching import SpeechDataLoader, make_dataloader
from lact_asr.data.corpora import Corpus, load_corpus
from lact_asr.data.corpus_listings import subset_names
from lact_asr.data.ctc_fit import drop_unfit
from lact_asr.data.download import download
from lact_asr.data.noise import NoiseMixer, coloured_noises
from lact_asr.data.recordings import load_recordings
from lact_asr.data.reverberation import load_impulse_responses
from lact_asr.errors import InputError
from lact_asr.processing_hybrid_asr import HybridASRProcessor
from lact_asr.text import build_vocabulary

MOST_READING_PROCESSES = 8


def download_missing(arguments: argparse.Namespace, accelerator: Accelerator) -> None:
    """What ``--download`` asks for: the named subsets that are not there, fetched by the main process.

    Raises:
        InputError: they are not of that corpus, or cannot be fetched.
    """
    if arguments.download is None:
        return
    if arguments.dataset_type != "librispeech":
        raise InputError(f"--download fetches LibriSpeech, which is not of --dataset_type {arguments.dataset_type}.")
    subsets = (arguments.train_subset, arguments.val_subset, arguments.test_subset)
    names = dict.fromkeys(name for subset in subsets if subset for name in subset_names(subset, arguments.data_dir))
    with accelerator.main_process_first():
        download(arguments.download, arguments.data_dir, ",".join(names))


def load_training_corpora(arguments: argparse.Namespace) -> list[Corpus]:
    """The main training corpus and every ``--extra_train_data``."""
    corpora = [load_corpus(arguments.data_dir, arguments.train_subset, arguments.dataset_type)]
    for extra in arguments.extra_train_data:
        weight, kind, folder, subsets = _parse_extra(extra)
        corpus = load_corpus(folder, subsets, kind)
        corpora.append(replace(corpus, weights=[weight] * len(corpus.cuts)))
    return corpora


def _parse_extra(text: str) -> tuple[float, str, str, str]:
    """Weight, type, folder and subsets of ``[WEIGHT*]TYPE:FOLDER:SUBSETS``; folders may hold colons and stars."""
    kind, _, rest = text.partition(":")
    number, star, kind = kind.rpartition("*")
    folder, _, subsets = rest.rpartition(":")
    try:
        weight = float(number) if star else 1.0
    except ValueError:
        weight = math.nan
    if not folder or not subsets or not 0 < weight < math.inf:
        raise InputError(f"--extra_train_data {text!r} is not [WEIGHT*]TYPE:FOLDER:SUBSETS, with a weight above 0.")
    return weight, kind, folder, subsets


def choose_processor(arguments: argparse.Namespace, corpora: list[Corpus], do_normalize: bool) -> HybridASRProcessor:
    """The vocabulary of the training transcripts, or of a pretrained checkpoint's tokenizer."""
    if arguments.vocabulary == "corpus":
        vocabulary = build_vocabulary(text for corpus in corpora for text in corpus.texts)
    else:
        vocabulary = _pretrained_vocabulary(arguments.vocabulary)
    return HybridASRProcessor.from_vocabulary(vocabulary, do_normalize)


def _pretrained_vocabulary(name_or_folder: str) -> dict[str, int]:
    from transformers import Wav2Vec2CTCTokenizer

    if Path(name_or_folder).is_file():
        return load_checkpoint(name_or_folder).processor.vocabulary
    try:
        return Wav2Vec2CTCTokenizer.from_pretrained(name_or_folder).get_vocab()
    except Exception as error:  # the hub client raises many kinds for a name that is not there
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"No CTC tokenizer can be loaded from {name_or_folder!r} ({reason})") from None


def join_training_corpora(
    corpora: list[Corpus], arguments: argparse.Namespace, processor: HybridASRProcessor, frame_lengths: Callable
) -> Corpus:
    """One corpus of everything that can be trained on; the rest becomes its named problems."""
    cuts, taken = [], set()
    for number, corpus in enumerate(corpora):
        # Two corpora may use the same names; those of generated ones always do.
        cuts += [cut.with_id(f"extra{number}/{cut.id}") if cut.id in taken else cut for cut in corpus.cuts]
        taken.update(cut.id for cut in corpus.cuts)
    joined = Corpus(
        " + ".join(corpus.name for corpus in corpora),
        CutSet.from_cuts(cuts),
        [problem for corpus in corpora for problem in corpus.problems],
        [weight for corpus in corpora for weight in corpus.weights or [1.0] * len(corpus.cuts)],
    )
    fastest = max(arguments.speed_factors)
    return drop_unfit(
        joined,
        lambda samples: frame_lengths((samples / fastest).long()),
        processor.tokenizer,
        crop_samples(arguments),
        arguments.max_audio_duration,
    )


def crop_samples(arguments: argparse.Namespace) -> int | None:
    """Length that training audio is cropped to, None for no cropping."""
    return arguments.crop_samples if arguments.crop_samples > 0 else None


def make_training_loader(
    corpus: Corpus,
    arguments: argparse.Namespace,
    processor: HybridASRProcessor,
    accelerator: Accelerator,
    clean_views: bool = False,
) -> SpeechDataLoader:
    """Shuffled batches of similar durations, cropped and augmented; with clean views also without their noise."""
    augmentation = _augmentation(arguments)
    return make_dataloader(
        corpus.cuts,
        processor,
        arguments.batch_size,
        shuffle=True,
        seed=arguments.seed,
        num_buckets=arguments.num_buckets,
        crop_samples=crop_samples(arguments),
        max_batch_seconds=arguments.max_batch_duration,
        weights=corpus.weights,
        num_workers=reading_processes(arguments, accelerator),
        transform=augmentation,
        speeds=augmentation,
        clean_transform=augmentation.without_noise if clean_views else None,
        cache_bytes=int(arguments.cache_gigabytes * 1e9),
        world_size=accelerator.num_processes,
        rank=accelerator.process_index,
    )


def reading_processes(arguments: argparse.Namespace, accelerator: Accelerator) -> int:
    """``--num_workers``, or by default what keeps a GPU busy: each training process of this machine has its share of the cores."""
    if arguments.num_workers is not None:
        return arguments.num_workers
    if accelerator.device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(MOST_READING_PROCESSES, share - 1))


def _augmentation(arguments: argparse.Namespace) -> WaveformAugmentation | None:
    recordings = {} if arguments.noise_dir is None else load_recordings(arguments.noise_dir, "noise")
    noises = ChainMap(coloured_noises(arguments.noise_colours, arguments.seed), recordings)
    impulse_responses = {} if arguments.rir_dir is None else load_impulse_responses(arguments.rir_dir)
    if not noises and not impulse_responses and arguments.speed_factors == (1.0,):
        return None
    mixer = NoiseMixer(noises, arguments.noise_snr_db, arguments.seed) if noises else None
    return WaveformAugmentation(
        arguments.speed_factors, mixer, arguments.noise_prob, arguments.seed, impulse_responses, arguments.rir_prob
    )


def make_evaluation_loader(
    data_dir: Path, subset: str, arguments: argparse.Namespace, processor: HybridASRProcessor
) -> tuple[Corpus, SpeechDataLoader]:
    """All utterances of a subset, whole and unchanged."""
    corpus = load_corpus(data_dir, subset, arguments.dataset_type)
    loader = make_dataloader(
        corpus.cuts,
        processor,
        arguments.batch_size,
        shuffle=False,
        max_batch_seconds=arguments.max_batch_duration,
        num_workers=0,
        cache_bytes=int(0.5e9),
    )
    return corpus, loader
