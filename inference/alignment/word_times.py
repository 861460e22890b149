"""When words were said: frames of a decoder's words become seconds.

Frame t of the front end sees the samples [S t, S t + R), with S samples a frame and a receptive field of R. It stands for
the S samples in the middle of them, [S t + (R - S) / 2, S (t + 1) + (R - S) / 2), so that frames neither overlap nor leave
gaps, and no word begins before the recording or ends behind it. These are the times of what CTC spells, not of sounds:
a model often names a character late in its sound, in one frame, and so tends to begin words late and end them early.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lact_asr.sample_rate import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from lact_asr.front_end.geometry import FrameGeometry
    from lact_asr.inference.decoding import TimedWord

CONFIDENCE_DIGITS = 3


@dataclass(frozen=True)
class Word:
    """A word, when it was said, and how sure the decoder is of it.

    Attributes:
        text: as it is spelled in the transcript.
        start_seconds, end_seconds: from the start of the recording.
        confidence: 0 to 1 (`lact_asr.inference.decoding.confidence`); None where the decoder has none.
    """

    text: str
    start_seconds: float
    end_seconds: float
    confidence: float | None = None


@dataclass(frozen=True)
class TimedTranscript:
    """What the formats of `lact_asr.inference.transcript_formats` write of a recording.

    Attributes:
        id: the recording's name.
        text: words with single spaces.
        words: those of the text; None where their times are not known, which only text and JSON lines can do without.
        audio_seconds: how long the recording is.
        characters: those of the words, each as a `Word`; empty where their times are not known.
    """

    id: str
    text: str
    words: tuple[Word, ...] | None
    audio_seconds: float
    characters: tuple[Word, ...] = ()


def words_in_seconds(words: Iterable[TimedWord], geometry: FrameGeometry) -> tuple[Word, ...]:
    """A decoder's words with times in seconds, and with confidences rounded to what does not depend on the batch."""
    return tuple(
        Word(
            word.text,
            frame_seconds(word.start_frame, geometry),
            frame_seconds(word.end_frame, geometry),
            round(word.confidence, CONFIDENCE_DIGITS),
        )
        for word in words
    )


def frame_seconds(frame: int, geometry: FrameGeometry) -> float:
    """Where the samples that a frame stands for begin, in seconds from the start of the recording."""
    stride, field = geometry.samples_per_frame, geometry.receptive_field_samples
    return (stride * frame + (field - stride) / 2) / SAMPLE_RATE_HZ
