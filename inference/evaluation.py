"""Results of recognition, utterance by utterance: computed, kept in a JSON-lines file that survives a killed run, summed up in a table."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lact_asr.audio import SAMPLE_RATE_HZ
from lact_asr.errors import InputError
from lact_asr.inference.word_times import Word
from lact_asr.locks import open_alone
from lact_asr.metrics import ErrorCounts, count_character_errors, count_word_errors

_SETTINGS_KEY = "settings"
_TEXT_FIELDS = ("reference", "hypothesis", "hypothesis_without_ttt", "message", "ttt_refusal")
_ERROR_FIELDS = ("word_errors", "word_errors_without_ttt", "character_errors", "character_errors_without_ttt")


@dataclass(frozen=True)
class UtteranceResult:
    """One line of a results file.

    Attributes:
        id: name of the utterance or path of the file.
        reference: what was said; None if unknown.
        hypothesis: what was recognised; None if the utterance failed.
        hypothesis_without_ttt: the same before test-time training; None without it.
        word_errors, word_errors_without_ttt, character_errors, character_errors_without_ttt: None where there is nothing to compare.
        audio_seconds: duration of the audio.
        compute_seconds: time from samples to hypothesis, both passes and TTT included.
        message: why the utterance failed; None if it did not.
        ttt_refusal: why the hypothesis is not an adapted one; None where it is, or without test-time training.
        words: those of the hypothesis, with their times; None in results files that were written without them.
        alternatives: the next best hypotheses, best first, where they were wanted.
    """

    id: str
    reference: str | None = None
    hypothesis: str | None = None
    hypothesis_without_ttt: str | None = None
    word_errors: ErrorCounts | None = None
    word_errors_without_ttt: ErrorCounts | None = None
    character_errors: ErrorCounts | None = None
    character_errors_without_ttt: ErrorCounts | None = None
    audio_seconds: float = 0.0
    compute_seconds: float = 0.0
    message: str | None = None
    ttt_refusal: str | None = None
    words: tuple[Word, ...] | None = None
    alternatives: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether there is a message instead of a hypothesis."""
        return self.message is not None

    @classmethod
    def scored(
        cls,
        id: str,
        reference: str | None,
        hypothesis: str,
        hypothesis_without_ttt: str | None = None,
        *,
        audio_seconds: float,
        compute_seconds: float,
        ttt_refusal: str | None = None,
        words: tuple[Word, ...] | None = None,
        alternatives: tuple[str, ...] = (),
    ) -> UtteranceResult:
        """Compare hypotheses with the reference, if there is one."""

        def errors(count: Callable[[str, str], ErrorCounts], text: str | None) -> ErrorCounts | None:
            return None if reference is None or text is None else count(reference, text)

        return cls(
            id,
            reference,
            hypothesis,
            hypothesis_without_ttt,
            errors(count_word_errors, hypothesis),
            errors(count_word_errors, hypothesis_without_ttt),
            errors(count_character_errors, hypothesis),
            errors(count_character_errors, hypothesis_without_ttt),
            audio_seconds,
            compute_seconds,
            ttt_refusal=ttt_refusal,
            words=words,
            alternatives=alternatives,
        )

    def json_line(self, word_times: bool) -> str:
        """The result as it stands in a results file, with or without its words."""
        values = asdict(self)
        if not word_times:
            del values["words"]
        if not self.alternatives:
            del values["alternatives"]
        return _json_line(values)

    @classmethod
    def from_dict(cls, values: Mapping) -> UtteranceResult:
        """Undo `dataclasses.asdict`; raises TypeError for other keys, and for values of other types."""
        counts = {name: ErrorCounts(**values[name]) for name in _ERROR_FIELDS if values.get(name) is not None}
        words = values.get("words")
        words = None if words is None else tuple(Word(**word) for word in words)
        alternatives = tuple(values.get("alternatives", ()))
        result = cls(**{**values, **counts, "words": words, "alternatives": alternatives})
        result._check_types()
        return result

    def _check_types(self) -> None:
        words = self.words or ()
        texts = [self.id, *(text for name in _TEXT_FIELDS if (text := getattr(self, name)) is not None)]
        texts += [*self.alternatives, *(word.text for word in words)]
        errors = [counts for name in _ERROR_FIELDS if (counts := getattr(self, name)) is not None]
        numbers = [self.audio_seconds, self.compute_seconds, *(n for counts in errors for n in vars(counts).values())]
        numbers += [number for word in words for number in (word.start_seconds, word.end_seconds, word.confidence or 0)]
        if not all(isinstance(text, str) for text in texts) or not all(type(n) in (int, float) for n in numbers):
            raise TypeError("a value of another type")


# ---------------------------------------------------------------- the results file


def _json_line(values: Mapping) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"


def _parse_line(path: Path, number: int, line: bytes) -> UtteranceResult | dict:
    """Read one line of a results file: a result, or the settings as a dict."""
    try:
        values = json.loads(line)
        if not isinstance(values, dict):
            raise TypeError("not a JSON object")
        if set(values) == {_SETTINGS_KEY}:
            return values[_SETTINGS_KEY]
        return UtteranceResult.from_dict(values)
    except (ValueError, TypeError, RecursionError) as error:  # ValueError includes bad JSON and bad UTF-8
        names = ", ".join(field.name for field in fields(UtteranceResult))
        raise InputError(f"results file {path}, line {number}, is not a JSON object with {names}") from error


def _parse_lines(path: Path, content: bytes) -> tuple[list[UtteranceResult], dict | None, int]:
    """Of a results file's content: results, settings, and the number of bytes up to the last complete line."""
    complete_bytes = content.rfind(b"\n") + 1
    lines = [
        _parse_line(path, number, line) for number, line in enumerate(content[:complete_bytes].splitlines(), 1) if line
    ]
    settings = next((line for line in lines if isinstance(line, dict)), None)
    return [line for line in lines if isinstance(line, UtteranceResult)], settings, complete_bytes


def read_results(path: str | Path) -> list[UtteranceResult]:
    """Read a results file. Of several lines for one id (a failure, and what a resumed run made of it) the last counts; a torn last line is passed over.

    Raises:
        InputError: no such file, or a complete line that is not a result (named by number).
    """
    results, _ = _read_file(Path(path))
    return list({result.id: result for result in results}.values())


def read_settings(path: str | Path) -> dict:
    """The settings of the run that wrote a results file; empty where it has none. Raises as `read_results`."""
    _, settings = _read_file(Path(path))
    return settings or {}


def _read_file(path: Path) -> tuple[list[UtteranceResult], dict | None]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"results file {path} cannot be read: {error.strerror}") from error
    results, settings, _ = _parse_lines(path, content)
    return results, settings


class ResultsWriter:
    """Appends results to a JSON-lines file as they come, so that a killed run loses nothing but its last batch.

    Use as a context manager; `done` holds the results of an earlier run to be resumed. Failures are not among them, nor, where word times are
    wanted, results without: they are tried again.
    The first line holds the run's settings, so that a run is not resumed with others. A file that got no result is removed again.
    While the context lasts, no other process can write to the file.
    """

    def __init__(
        self, path: str | Path, settings: Mapping | None = None, *, resume: bool = False, word_times: bool = False
    ):
        """Name the file; nothing is written before the context is entered.

        Args:
            path: file to write; its folder is created.
            settings: what decides the results (checkpoint, beam size, …), as JSON values.
            resume: keep what an earlier run wrote, after its torn last line, if any, is cut off; else the file is replaced.
            word_times: write each result's words with their times, too.
        """
        self.path = Path(path)
        self.settings = json.loads(json.dumps(dict(settings or {})))  # as it will read back
        self.resume = resume
        self.word_times = word_times
        self.done: dict[str, UtteranceResult] = {}
        self._earlier_failures: list[UtteranceResult] = []
        self._file = None
        self._holds_results = False

    def __enter__(self) -> ResultsWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_alone(self.path)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(f"cannot write results file {self.path}: {self.path.parent} is not a folder") from error
        except OSError as error:
            raise InputError(f"cannot write results file {self.path}: {error.strerror}") from error
        try:
            keep_bytes = self._take_up_earlier_run() if self.resume else 0
        except InputError:
            self._file.close()
            raise
        self._file.truncate(keep_bytes)
        if not keep_bytes:
            self._append(_json_line({_SETTINGS_KEY: self.settings}))
        return self

    def _take_up_earlier_run(self) -> int:
        self._file.seek(0)
        results, settings, complete_bytes = _parse_lines(self.path, self._file.read())
        earlier = settings or {}
        for key in sorted(earlier.keys() | self.settings.keys()) if complete_bytes else ():
            if earlier.get(key) != self.settings.get(key):
                raise InputError(
                    f"results file {self.path} was written with {key} {earlier.get(key)!r}, not {self.settings.get(key)!r}: "
                    "resume with the same settings or choose another file"
                )
        self._holds_results = bool(results)
        self.done = {result.id: result for result in results if not (result.failed or self._lacks_words(result))}
        self._earlier_failures = [result for result in results if result.failed]
        return complete_bytes

    def _lacks_words(self, result: UtteranceResult) -> bool:
        return self.word_times and result.words is None

    def __exit__(self, *exception) -> None:
        if not self._holds_results:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def write(self, result: UtteranceResult) -> None:
        """Append a result and hand it to the operating system; a failure that is there already is not written again."""
        if result not in self._earlier_failures:
            self._append(result.json_line(self.word_times))
        self._holds_results = True

    def _append(self, line: str) -> None:
        self._file.write(line.encode())
        self._file.flush()


# ---------------------------------------------------------------- running


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
class Hypotheses:
    """What a recogniser answers: the text, with test-time training also the text before it, and why the text was not adapted.

    `words` are those of `text`, with their times; `alternatives` are the next best texts, if wanted.
    """

    text: str
    text_without_ttt: str | None = None
    ttt_refusal: str | None = None
    words: tuple[Word, ...] = ()
    alternatives: tuple[str, ...] = ()


Answer = Hypotheses | InputError
Recognise = Callable[[Sequence[np.ndarray], Sequence[str | None]], Sequence[Answer | Callable[[], Answer]]]


def evaluate(
    utterances: Sequence[Utterance],
    recognise: Recognise,
    writer: ResultsWriter | None = None,
    batch_size: int = 1,
    description: str = "recognising",
    in_order: bool = True,
    ahead: int = 0,
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


# ---------------------------------------------------------------- summing up


@dataclass(frozen=True)
class Summary:
    """Sums over results. Failed utterances are counted, and left out of everything else.

    Attributes:
        utterances: all, failed ones included.
        failed: those without a hypothesis.
        words, characters: errors; None if no utterance had a reference.
        words_without_ttt, characters_without_ttt: the same before TTT; None if there was none.
        audio_seconds, compute_seconds: of the recognised utterances.
    """

    utterances: int
    failed: int
    words: ErrorCounts | None
    words_without_ttt: ErrorCounts | None
    characters: ErrorCounts | None
    characters_without_ttt: ErrorCounts | None
    audio_seconds: float
    compute_seconds: float

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of compute for a second of audio; None without audio."""
        return self.compute_seconds / self.audio_seconds if self.audio_seconds else None


def summarise(results: Iterable[UtteranceResult]) -> Summary:
    """Add up the errors and times of results."""
    results = list(results)
    recognised = [result for result in results if not result.failed]

    def total(name: str) -> ErrorCounts | None:
        counts = [getattr(result, name) for result in recognised if getattr(result, name) is not None]
        return sum(counts, ErrorCounts()) if counts else None

    return Summary(
        utterances=len(results),
        failed=len(results) - len(recognised),
        words=total("word_errors"),
        words_without_ttt=total("word_errors_without_ttt"),
        characters=total("character_errors"),
        characters_without_ttt=total("character_errors_without_ttt"),
        audio_seconds=sum(result.audio_seconds for result in recognised),
        compute_seconds=sum(result.compute_seconds for result in recognised),
    )


def _percent(counts: ErrorCounts | None) -> str:
    return "–" if counts is None else f"{100 * counts.rate:.1f}"


def format_table(summaries: Mapping[str, Summary]) -> str:
    """Write summaries as a Markdown table whose columns also line up in a terminal; rates in per cent.

    Columns that no row fills (error rates before TTT, failures) are left out.
    """
    header = [
        "",
        "utterances",
        "failed",
        "words",
        "WER %",
        "WER % without TTT",
        "CER %",
        "CER % without TTT",
        "real-time factor",
    ]
    rows = [
        [
            name,
            str(summary.utterances),
            str(summary.failed or "–"),
            str(summary.words.reference_length) if summary.words else "–",
            _percent(summary.words),
            _percent(summary.words_without_ttt),
            _percent(summary.characters),
            _percent(summary.characters_without_ttt),
            "–" if summary.real_time_factor is None else f"{summary.real_time_factor:.3f}",
        ]
        for name, summary in summaries.items()
    ]
    filled = [column for column in range(len(header)) if column == 0 or any(row[column] != "–" for row in rows)]
    return markdown_table([[row[column] for column in filled] for row in (header, *rows)])


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Write cells, header first, as a Markdown table whose columns also line up in a terminal; numbers, behind the first, to the right."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        name, *numbers = (
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([name, *numbers]) + " |"

    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:]), ""])
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])
