"""One recording transcribed without and with test-time training, and what a reader wants to see of the two: words that differ, doubts, times."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2
import numpy as np
from rapidfuzz.distance import Levenshtein

from lact_asr.audio import SAMPLE_RATE_HZ
from lact_asr.errors import InputError
from lact_asr.inference.alignment.word_times import Word
from lact_asr.inference.evaluation import Recognition
from lact_asr.inference.recogniser import Recogniser


@dataclass(frozen=True)
class Version:
    """One of the two transcripts.

    Attributes:
        words: with times and confidences.
        differs: of each word, whether the other transcript has another word there, or none.
        compute_seconds: from samples to words.
    """

    words: tuple[Word, ...]
    differs: tuple[bool, ...]
    compute_seconds: float


@dataclass(frozen=True)
class Comparison:
    """Both transcripts of a recording; `ttt_refusal` says why the second is the first again, None where it is not."""

    plain: Version
    adapted: Version
    audio_seconds: float
    ttt_refusal: str | None

    def to_html(self) -> str:
        """A fragment of a page; whatever was recognised is escaped."""
        return _template().render(comparison=self)


def compare(samples: np.ndarray, plain: Recogniser, adapted: Recogniser) -> Comparison:
    """Transcribe float32 [samples] at 16 kHz twice.

    Args:
        samples: of the recording.
        plain: a recogniser without test-time training.
        adapted: the same with it.

    Raises:
        InputError: the model's output is not finite.
    """
    before, before_seconds = _transcribe(plain, samples)
    after, after_seconds = _transcribe(adapted, samples)
    before_differs, after_differs = differing_words(before.text.split(), after.text.split())
    return Comparison(
        Version(before.words, before_differs, before_seconds),
        Version(after.words, after_differs, after_seconds),
        len(samples) / SAMPLE_RATE_HZ,
        after.ttt_refusal,
    )


def _transcribe(recogniser: Recogniser, samples: np.ndarray) -> tuple[Recognition, float]:
    started = time.perf_counter()
    (answer,) = recogniser([samples])
    if isinstance(answer, InputError):
        raise answer
    return answer, time.perf_counter() - started


def differing_words(one: Sequence[str], other: Sequence[str]) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Of each word of both texts, whether it is not matched by the same word of the other (Levenshtein alignment)."""
    marks = [True] * len(one), [True] * len(other)
    for tag, start, end, other_start, other_end in Levenshtein.opcodes(one, other):
        if tag == "equal":
            marks[0][start:end] = [False] * (end - start)
            marks[1][other_start:other_end] = [False] * (other_end - other_start)
    return tuple(marks[0]), tuple(marks[1])


@functools.cache
def _template() -> jinja2.Template:
    source = resources.files(__package__).joinpath("comparison.html.jinja").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
