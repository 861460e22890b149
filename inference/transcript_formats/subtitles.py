"""Subtitles: SubRip (.srt) and WebVTT (.vtt, https://www.w3.org/TR/webvtt1)."""

from __future__ import annotations

from collections.abc import Sequence

from lact_asr.inference.alignment.word_times import TimedTranscript
from lact_asr.inference.transcript_formats.cues import Cue, CueLayout, make_cues


def srt(transcript: TimedTranscript, layout: CueLayout = CueLayout()) -> str:  # noqa: B008 - frozen
    """One recording as SubRip subtitles; empty for silence."""
    blocks = _blocks(make_cues(transcript.words, transcript.audio_seconds, layout), ",")
    return "\n".join(f"{number}\n{block}" for number, block in enumerate(blocks, 1))


def vtt(transcript: TimedTranscript, layout: CueLayout = CueLayout()) -> str:  # noqa: B008 - frozen
    """One recording as WebVTT subtitles; the header alone for silence."""
    blocks = _blocks(make_cues(transcript.words, transcript.audio_seconds, layout), ".")
    escaped = (block.replace("&", "&amp;").replace("<", "&lt;") for block in blocks)
    return "\n".join(["WEBVTT\n", *escaped])


def _blocks(cues: Sequence[Cue], decimal_mark: str) -> list[str]:
    return [
        f"{clock(cue.start_seconds, decimal_mark)} --> {clock(cue.end_seconds, decimal_mark)}\n"
        + "\n".join(cue.lines)
        + "\n"
        for cue in cues
    ]


def clock(seconds: float, decimal_mark: str = ".") -> str:
    """Seconds as hours, minutes, seconds and milliseconds: 3723.5 is "01:02:03.500"."""
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{decimal_mark}{milliseconds % 1000:03}"
