"""The JSON-lines file of results: it survives a killed run, which goes on where it stopped."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from lact_asr.errors import InputError
from lact_asr.inference.results.utterance_result import UtteranceResult, json_line
from lact_asr.locks import open_alone

_SETTINGS_KEY = "settings"
_LONGEST_FIRST_LINE = 1 << 20
_MOST_TELLING = ("ttt_recipe", "ttt_loss_type", "decoder", "lm_path", "lm_weight", "word_score", "data_dir")
_LONGEST_VALUE, _MOST_DIFFERENCES = 60, 3  # in a sentence on other settings


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


def _may_be_results(first_line: bytes) -> bool:
    """Whether a file that begins so is empty, a results file, or one whose first line was torn."""
    try:
        _parse_line(Path(), 1, first_line)
    except InputError:
        return first_line == b"" or (first_line.startswith(b'{"') and not first_line.endswith((b"\n", b"}")))
    return True


def _differences(earlier: Mapping, settings: Mapping) -> str:
    """What differs in words, the most telling setting first."""
    keys = [key for key in (earlier.keys() | settings.keys()) if earlier.get(key) != settings.get(key)]
    rank = {key: position for position, key in enumerate(_MOST_TELLING)}
    keys.sort(key=lambda key: (rank.get(key, len(rank)), key))
    named = [_difference(key, earlier.get(key), settings.get(key)) for key in keys[:_MOST_DIFFERENCES]]
    more = len(keys) - len(named)
    return ", ".join(named) + f" and {more} more" * (more > 0)


def _difference(key: str, earlier: object, now: object) -> str:
    short = len(f"{earlier}{now}") <= _LONGEST_VALUE  # what a recipe comes to fills several lines
    return f"{key} {earlier}, not {now}" if short else f"another {key}"


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
        self,
        path: str | Path,
        settings: Mapping | None = None,
        *,
        resume: bool = False,
        word_times: bool = False,
        overwrite: bool = True,
        expected: int | None = None,
    ):
        """Name the file; nothing is written before the context is entered.

        Args:
            path: file to write; its folder is created.
            settings: what decides the results (checkpoint, beam size, …), as JSON values.
            resume: keep what an earlier run wrote, after its torn last line, if any, is cut off; else the file is replaced.
            word_times: write each result's words with their times, too.
            overwrite: replace the results of other settings, and of more utterances, too; others always are.
            expected: how many utterances this run is of.
        """
        self.path = Path(path)
        self.settings = json.loads(json.dumps(dict(settings or {})))  # as it will read back
        self.resume = resume
        self.word_times = word_times
        self.overwrite = overwrite
        self.expected = expected
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
            keep_bytes = self._take_up_earlier_run() if self.resume else self._replace_earlier_run()
        except InputError:
            self._file.close()
            raise
        self._file.truncate(keep_bytes)
        if not keep_bytes:
            self._append(json_line({_SETTINGS_KEY: self.settings}))
        return self

    def _replace_earlier_run(self) -> int:
        """Keep nothing; but a mistyped name must not cost anybody a recording or a checkpoint."""
        self._file.seek(0)
        first_line = self._file.readline(_LONGEST_FIRST_LINE)
        if not _may_be_results(first_line):
            raise InputError(f"{self.path} is there already and is no results file: choose another name, or remove it")
        rest = self._file.read()
        if not self.overwrite and rest:
            self._refuse_other_settings(_parse_line(self.path, 1, first_line))
            self._refuse_more_results(rest)
        return 0

    def _refuse_more_results(self, content: bytes) -> None:
        earlier = 0
        with contextlib.suppress(InputError):  # damaged, and replaced as ever
            earlier = len({result.id for result in _parse_lines(self.path, content)[0]})
        if self.expected is not None and earlier > self.expected:
            raise InputError(
                f"{self.path} holds {earlier:,} results, and this run is of {self.expected:,}: "
                "give --output another file, or --overwrite to replace them"
            )

    def _refuse_other_settings(self, earlier: UtteranceResult | dict) -> None:
        if isinstance(earlier, dict) and earlier != self.settings:
            raise InputError(
                f"{self.path} holds the results of other settings ({_differences(earlier, self.settings)}): "
                "give --output another file, or --overwrite to replace them"
            )

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
