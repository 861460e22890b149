"""What a command transcribes: files, folders or a corpus subset, as utterances that are read when their turn comes."""

from __future__ import annotations

import argparse
import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path

from lact_asr.audio import find_audio_files
from lact_asr.data.corpora import Corpus, load_corpus, transcript
from lact_asr.inference.evaluation import Utterance
from lact_asr.inference.long_audio.long_recordings import read_cut_or_defer, read_or_defer

# Of a corpus: its utterances are scored as they are, and LibriSpeech has some of 35 seconds.
LONGEST_WHOLE_SECONDS = 60.0


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
