"""What a training benchmark trains on: noise bursts drawn from a seed, which need no audio library, or a corpus."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from lact_asr.processing_hybrid_asr import HybridASRProcessor
from lact_asr.sample_rate import SAMPLE_RATE_HZ
from lact_asr.text import SPECIAL_TOKENS, build_vocabulary

Batch = dict[str, torch.Tensor]
CHARACTERS_PER_SECOND = 14  # of read English
SHORTEST = 0.9  # of the longest utterance of a batch: duration buckets leave some 5 % of padding
BURST_SECONDS = 0.1


def synthetic_batches(
    processor: HybridASRProcessor, utterances: int, seconds: float, seed: int, distinct: int = 4
) -> Iterator[Batch]:
    """Endless batches of ``utterances`` rows of 90 to 100 % of ``seconds``: ``distinct`` sets of recordings in turn.

    The recordings are made beforehand; normalising and padding them is part of each batch, as in training.
    """
    generator = np.random.default_rng(seed)
    longest = int(seconds * SAMPLE_RATE_HZ)
    recordings = [
        [_noise_bursts(generator, generator.integers(int(SHORTEST * longest), longest + 1)) for _ in range(utterances)]
        for _ in range(distinct)
    ]
    labels = [
        [_random_labels(generator, len(samples), len(processor.vocabulary)) for samples in rows] for rows in recordings
    ]
    while True:
        for rows, row_labels in zip(recordings, labels, strict=True):
            inputs = processor.feature_extractor(
                rows, sampling_rate=SAMPLE_RATE_HZ, padding=True, return_attention_mask=True, return_tensors="pt"
            )
            yield {
                "input_values": inputs.input_values,
                "attention_mask": inputs.attention_mask.long(),
                "labels": pad_sequence(row_labels, batch_first=True, padding_value=-100),
            }


def _noise_bursts(generator: np.random.Generator, num_samples: int) -> np.ndarray:
    """Gaussian noise whose level changes every tenth of a second: float32 [num_samples]."""
    burst = int(BURST_SECONDS * SAMPLE_RATE_HZ)
    levels = generator.uniform(0, 0.3, num_samples // burst + 1).repeat(burst)[:num_samples]
    return (levels * generator.standard_normal(num_samples)).astype(np.float32)


def _random_labels(generator: np.random.Generator, num_samples: int, vocabulary_size: int) -> torch.Tensor:
    count = max(1, CHARACTERS_PER_SECOND * num_samples // SAMPLE_RATE_HZ)
    return torch.from_numpy(generator.integers(len(SPECIAL_TOKENS), vocabulary_size, count))


def corpus_batches(arguments: argparse.Namespace) -> tuple[HybridASRProcessor, Iterator[Batch]]:
    """The processor of a corpus, and endless batches of it, read and decoded anew each time."""
    # Late: a GPU machine for benchmarks may have neither lhotse nor an audio library.
    from lact_asr.data.batching import make_dataloader
    from lact_asr.data.corpora import load_corpus

    corpus = load_corpus(arguments.data_dir, arguments.subset, arguments.dataset_type)
    processor = HybridASRProcessor.from_vocabulary(build_vocabulary(corpus.texts))
    crop = int(arguments.seconds * SAMPLE_RATE_HZ)
    loader = make_dataloader(
        corpus.cuts, processor, arguments.utterances, shuffle=True, seed=arguments.seed, crop_samples=crop
    )

    def endless() -> Iterator[Batch]:
        while True:
            yield from loader

    return processor, endless()
