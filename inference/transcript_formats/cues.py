"""Subtitle cues: which words are on the screen together, in which lines, from when to when."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lact_asr.inference.alignment.word_times import Word


@dataclass(frozen=True)
class CueLayout:
    """What a cue may be; the defaults are the usual ones of broadcasters.

    Attributes:
        line_characters, lines: the longest line, and how many there are. A longer word is a line of its own.
        cue_seconds: longest time from a cue's first word to the end of its last.
        pause_seconds: silence after which a cue always ends.
        shortest_cue_seconds: cues are shown at least so long, as far as the next cue and the recording's end allow.
    """

    line_characters: int = 42
    lines: int = 2
    cue_seconds: float = 7.0
    pause_seconds: float = 1.0
    shortest_cue_seconds: float = 1.0


@dataclass(frozen=True)
class Cue:
    """Lines of text and when they are shown, in seconds from the start of the recording."""

    lines: tuple[str, ...]
    start_seconds: float
    end_seconds: float


def make_cues(words: Sequence[Word], audio_seconds: float = math.inf, layout: CueLayout = CueLayout()) -> list[Cue]:
    """Break a transcript into cues where the words pause, and so that no cue is much emptier than others.

    Of all ways to break it, the one whose sum of `_cost` is least is found by dynamic programming, as paragraphs are
    broken into lines by Knuth and Plass (1981).
    """
    if not words:
        return []
    costs, starts = [0.0], []  # of the best cues for words[:i]: their cost, and where the last one starts
    for end in range(1, len(words) + 1):
        options = []
        for start in range(end - 1, -1, -1):
            if start < end - 1 and not _fits(words[start:end], layout):
                break
            options.append((costs[start] + _cost(words, start, end, layout), start))
        cost, start = min(options)
        costs.append(cost)
        starts.append(start)
    bounds = [len(words)]
    while bounds[-1] > 0:
        bounds.append(starts[bounds[-1] - 1])
    bounds.reverse()
    groups = [words[start:end] for start, end in itertools.pairwise(bounds)]
    limits = [*(group[0].start_seconds for group in groups[1:]), audio_seconds]
    return [_cue(group, limit, layout) for group, limit in zip(groups, limits, strict=True)]


def _fits(words: Sequence[Word], layout: CueLayout) -> bool:
    if words[-1].end_seconds - words[0].start_seconds > layout.cue_seconds:
        return False
    if words[1].start_seconds - words[0].end_seconds > layout.pause_seconds:  # later pauses were seen with fewer words
        return False
    return len(_lines(words, layout.line_characters)) <= layout.lines


def _cost(words: Sequence[Word], start: int, end: int, layout: CueLayout) -> float:
    """The squared share of a cue that is left empty, and up to 1 for ending it where there is little pause."""
    characters = _characters(words[start:end]) / (layout.lines * layout.line_characters)
    seconds = (words[end - 1].end_seconds - words[start].start_seconds) / layout.cue_seconds
    empty = max(0.0, 1 - max(characters, seconds))
    pause = math.inf if end == len(words) else words[end].start_seconds - words[end - 1].end_seconds
    return empty**2 + 1 - min(1.0, pause / layout.pause_seconds)


def _cue(words: Sequence[Word], limit_seconds: float, layout: CueLayout) -> Cue:
    start, end = words[0].start_seconds, words[-1].end_seconds
    shown_until = max(end, min(start + layout.shortest_cue_seconds, limit_seconds))
    return Cue(tuple(_balanced_lines(words, layout.line_characters)), start, shown_until)


def _balanced_lines(words: Sequence[Word], longest: int) -> list[str]:
    """As few lines as possible, and the longest of them as short as possible."""
    lines = _lines(words, longest)
    narrower = (_lines(words, width) for width in range(_characters(words) // len(lines), longest))
    return next((narrow for narrow in narrower if len(narrow) == len(lines)), lines)


def _lines(words: Sequence[Word], longest: int) -> list[str]:
    """As many words in each line as find room; a longer word is a line of its own."""
    lines = [words[0].text]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word.text) <= longest:
            lines[-1] += f" {word.text}"
        else:
            lines.append(word.text)
    return lines


def _characters(words: Sequence[Word]) -> int:
    return sum(len(word.text) for word in words) + len(words) - 1
