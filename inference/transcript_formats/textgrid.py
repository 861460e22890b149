"""TextGrid, the interval tiers of Praat: words, and where they are known characters."""

from __future__ import annotations

from collections.abc import Sequence

from lact_asr.inference.alignment.word_times import TimedTranscript, Word


def textgrid(transcript: TimedTranscript) -> str:
    """One recording; silence between words is intervals without text."""
    tiers = {"words": transcript.words} | ({"characters": transcript.characters} if transcript.characters else {})
    header = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {transcript.audio_seconds:.6f}",
        "tiers? <exists>",
        f"size = {len(tiers)}",
        "item []:",
    ]
    lines = [
        line for number, tier in enumerate(tiers.items(), 1) for line in _tier(number, *tier, transcript.audio_seconds)
    ]
    return "\n".join([*header, *lines]) + "\n"


def _tier(number: int, name: str, words: Sequence[Word], audio_seconds: float) -> list[str]:
    intervals = _without_gaps(words, audio_seconds)
    lines = [
        f"    item [{number}]:",
        '        class = "IntervalTier"',
        f'        name = "{name}"',
        "        xmin = 0",
        f"        xmax = {audio_seconds:.6f}",
        f"        intervals: size = {len(intervals)}",
    ]
    for index, interval in enumerate(intervals, 1):
        text = interval.text.replace('"', '""')
        lines += [
            f"        intervals [{index}]:",
            f"            xmin = {interval.start_seconds:.6f}",
            f"            xmax = {interval.end_seconds:.6f}",
            f'            text = "{text}"',
        ]
    return lines


def _without_gaps(words: Sequence[Word], audio_seconds: float) -> list[Word]:
    """Words, and between them words without text, from 0 to the end of the recording."""
    intervals, now = [], 0.0
    for word in words:
        if word.start_seconds > now:
            intervals.append(Word("", now, word.start_seconds))
        intervals.append(word)
        now = word.end_seconds
    return [*intervals, Word("", now, audio_seconds)] if now < audio_seconds else intervals
