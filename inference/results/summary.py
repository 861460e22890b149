"""Results summed up, and tables of sums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lact_asr.inference.results.utterance_result import UtteranceResult
from lact_asr.metrics import ErrorCounts


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
    return "–" if counts is None else f"{100 * counts.rate:.2f}"


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
