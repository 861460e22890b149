"""Utterances recognised batch by batch, each read, answered and scored."""

from __future__ import annotations

import functools
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from lact_asr.audio import SAMPLE_RATE_HZ
from lact_asr.errors import InputError
from lact_asr.inference.alignment.word_times import Word
from lact_asr.inference.results.results_file import ResultsWriter
from lact_asr.inference.results.utterance_result import UtteranceResult


@dataclass(frozen=True)
class Utterance:
    """Something to recognise: `read` gives float32 [samples] at 16 kHz, or raises `InputError` where the file is bad.

    `speaker` is a name, `seconds` the duration; None where they are not known.
    """

    id: str
    reference: str | None
    read: Callable[[], np.ndarray]
    speaker: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Recognition:
    """What a recogniser answers: the text, with test-time training also the text before it, and why the text was not adapted.

    `words` are those of `text`, with their times; `alternatives` are the next best texts, if wanted.
    """

    text: str
    text_without_ttt: str | None = None
    ttt_refusal: str | None = None
    words: tuple[Word, ...] = ()
    alternatives: tuple[str, ...] = ()


Answer = Recognition | InputError
Recognise = Callable[[Sequence[np.ndarray], Sequence[str | None]], Sequence[Answer | Callable[[], Answer]]]


def evaluate(
    utterances: Sequence[Utterance],
    recognise: Recognise,
    writer: ResultsWriter | None = None,
    batch_size: int = 1,
    description: str = "recognising",
    in_order: bool = True,
    ahead: int = 0,
    on_result: Callable[[UtteranceResult], None] = lambda result: None,
) -> list[UtteranceResult]:
    """Recognise utterances, with a progress bar. A bad file is recorded with its sentence and the rest go on.

    Args:
        utterances: those that `writer.done` holds are taken from there.
        recognise: from some recordings, each float32 [samples], and their speakers to an answer for each; an `InputError` among
            them (output that is not finite, …) counts as the file's. An answer may be a function that gives it.
        writer: an entered `ResultsWriter`, or None to write nothing.
        batch_size: recordings given to ``recognise`` at once.
        description: of the progress bar.
        in_order: False lets batches hold recordings of similar durations, the longest first: little of them is then padding.
        ahead: batches that are recognised before the first one's functions are called: so a `DecodingPool` decodes while the model goes on.
        on_result: called with each result when it is there, but with those of ``writer.done``.

    Returns:
        One result for each utterance, in their order.
    """
    found = dict(writer.done) if writer else {}
    todo = [utterance for utterance in utterances if utterance.id not in found]
    if batch_size > 1 and not in_order and all(utterance.seconds is not None for utterance in todo):
        todo.sort(key=lambda utterance: utterance.seconds, reverse=True)
    done = len(utterances) - len(todo)
    with tqdm(total=len(utterances), initial=done, desc=description, unit="utterance", mininterval=1.0) as bar:
        batches = (todo[start : start + batch_size] for start in range(0, len(todo), batch_size))
        for result in _results(batches, recognise, ahead):
            found[result.id] = result
            if writer:
                writer.write(result)
            on_result(result)
            bar.update()
    return [found[utterance.id] for utterance in utterances]


def _results(batches: Iterable[Sequence[Utterance]], recognise: Recognise, ahead: int) -> Iterator[UtteranceResult]:
    started: deque[list[Callable[[], UtteranceResult]]] = deque()
    for batch in batches:
        started.append(_start(batch, recognise))
        if len(started) > ahead:
            yield from (result() for result in started.popleft())
    for results in started:
        yield from (result() for result in results)


def _start(utterances: Sequence[Utterance], recognise: Recognise) -> list[Callable[[], UtteranceResult]]:
    """Read and recognise some utterances at once, and give results in their order; the time is shared out by their durations."""
    recordings = [_read_or_error(utterance) for utterance in utterances]
    readable = [samples for samples in recordings if not isinstance(samples, InputError)]
    pairs = list(zip(utterances, recordings, strict=True))
    speakers = [utterance.speaker for utterance, samples in pairs if not isinstance(samples, InputError)]
    began = time.perf_counter()
    answers = iter(recognise(readable, speakers) if readable else ())
    seconds_a_sample = (time.perf_counter() - began) / max(1, sum(map(len, readable)))
    results = []
    for utterance, samples in pairs:
        if isinstance(samples, InputError):
            results.append(functools.partial(_failed, utterance, samples))
        else:
            seconds = len(samples) * seconds_a_sample
            results.append(functools.partial(_finish, utterance, len(samples), seconds, next(answers)))
    return results


def _finish(
    utterance: Utterance, sample_count: int, compute_seconds: float, answer: Answer | Callable[[], Answer]
) -> UtteranceResult:
    began = time.perf_counter()
    if callable(answer):
        answer = answer()
    if isinstance(answer, InputError):
        return _failed(utterance, answer)
    return UtteranceResult.scored(
        utterance.id,
        utterance.reference,
        answer.text,
        answer.text_without_ttt,
        audio_seconds=sample_count / SAMPLE_RATE_HZ,
        compute_seconds=compute_seconds + time.perf_counter() - began,
        ttt_refusal=answer.ttt_refusal,
        words=answer.words,
        alternatives=answer.alternatives,
    )


def _read_or_error(utterance: Utterance) -> np.ndarray | InputError:
    try:
        return utterance.read()
    except InputError as error:
        return error


def _failed(utterance: Utterance, error: InputError) -> UtteranceResult:
    tqdm.write(f"{utterance.id}: {error}", file=sys.stderr)
    return UtteranceResult(utterance.id, utterance.reference, message=str(error))
