"""CTM, the time-marked words that NIST's scoring tools read (sclite): recording, channel, start, duration, word, confidence."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lact_asr.inference.alignment.word_times import TimedTranscript, Word
from lact_asr.inference.transcript_formats.recording_names import recording_names


def ctm(transcripts: Sequence[TimedTranscript]) -> str:
    """One line a word, by recording and start time, as sclite wants them; recordings are named as by `recording_names`.

    White space in a name becomes "_", and a confidence that is not known is left out.
    """
    names = recording_names([transcript.id for transcript in transcripts])
    words = [
        (re.sub(r"\s+", "_", name), word)
        for name, transcript in zip(names, transcripts, strict=True)
        for word in transcript.words
    ]
    words.sort(key=lambda named: (named[0], named[1].start_seconds))
    return "".join(_line(name, word) for name, word in words)


def _line(name: str, word: Word) -> str:
    start, end = round(word.start_seconds, 3), round(word.end_seconds, 3)
    confidence = "" if word.confidence is None else f" {word.confidence:.3f}"
    return f"{name} 1 {start:.3f} {end - start:.3f} {word.text}{confidence}\n"
