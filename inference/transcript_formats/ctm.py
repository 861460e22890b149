"""CTM, the time-marked words that NIST's scoring tools read (sclite): recording, channel, start, duration, word, confidence."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lact_asr.inference.alignment.word_times import TimedTranscript


def ctm(transcripts: Iterable[TimedTranscript]) -> str:
    """One line a word; white space in a recording's name becomes "_", and a confidence that is not known is left out."""
    return "".join(f"{line}\n" for transcript in transcripts for line in _lines(transcript))


def _lines(transcript: TimedTranscript) -> list[str]:
    name = re.sub(r"\s+", "_", transcript.id)
    lines = []
    for word in transcript.words:
        start, end = round(word.start_seconds, 3), round(word.end_seconds, 3)
        confidence = "" if word.confidence is None else f" {word.confidence:.3f}"
        lines.append(f"{name} 1 {start:.3f} {end - start:.3f} {word.text}{confidence}")
    return lines
