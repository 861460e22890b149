"""Recordings of any length in bounded memory: read in blocks, cut at silence, recognised piece by piece."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from lact_asr.audio import SAMPLE_RATE_HZ, audio_blocks, audio_duration_seconds, read_audio
from lact_asr.data.corpora import cut_samples, read_cut
from lact_asr.errors import InputError
from lact_asr.inference.evaluation import Answer, Recognise, Recognition
from lact_asr.inference.long_audio.fast_weight_memory import FastWeightMemory
from lact_asr.inference.long_audio.silence_cutting import Piece, cut_at_silence
from lact_asr.inference.long_audio.voice_activity import make_voice_activity

if TYPE_CHECKING:
    from lhotse import MonoCut

_MINUTES = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} min of audio [{elapsed}<{remaining}]"


@dataclass(frozen=True)
class LongRecording:
    """A recording too long to be recognised at once; stands where shorter ones have their samples.

    Attributes:
        path: of the file, or a name for people.
        num_samples: at 16 kHz.
        read: gives all samples, where the recording is a part of a file; None reads the file block by block.
    """

    path: Path
    num_samples: int
    read: Callable[[], np.ndarray] | None = None

    def __len__(self) -> int:
        """Samples at 16 kHz, as the header has it."""
        return self.num_samples

    def blocks(self) -> Iterator[np.ndarray]:
        """Float32 [samples] each; see `lact_asr.audio.audio_blocks`."""
        return audio_blocks(self.path) if self.read is None else iter([self.read()])


def read_or_defer(path: Path, longest_seconds: float) -> np.ndarray | LongRecording:
    """The samples of a recording, or, above a length, what they can be read with; raises `InputError` as `read_audio`."""
    seconds = audio_duration_seconds(path)
    if seconds <= longest_seconds:
        return read_audio(path)
    return LongRecording(Path(path), round(seconds * SAMPLE_RATE_HZ))


def read_cut_or_defer(cut: MonoCut, longest_seconds: float) -> np.ndarray | LongRecording:
    """As `read_or_defer`, for an utterance of a corpus; what is a part of a file is read into memory before it is cut."""
    if cut.duration <= longest_seconds:
        return read_cut(cut)
    source = cut.recording.sources[0].source
    is_a_file = isinstance(source, str) and cut.start == 0 and cut.end >= cut.recording.duration
    read = None if is_a_file else functools.partial(read_cut, cut)
    return LongRecording(Path(source if is_a_file else cut.id), cut_samples(cut), read)


@dataclass(frozen=True)
class Cutting:
    """How recordings are cut: see `cut_at_silence`; ``detector`` is "silero" or "energy"."""

    longest_seconds: float = 30.0
    pause_seconds: float = 0.5
    detector: str = "energy"

    def pieces(self, recording: LongRecording) -> Iterator[Piece]:
        """The pieces of a recording, in order."""
        voice_activity = make_voice_activity(self.detector)
        return cut_at_silence(recording.blocks(), self.longest_seconds, self.pause_seconds, voice_activity)


class PiecewiseRecogniser:
    """A recogniser that also takes `LongRecording`s; what it is given in samples goes to ``recognise`` as it is.

    Args:
        recognise: transcribes recordings of ordinary length.
        cutting: how long ones are cut.
        batch_size: pieces that are recognised at once.
        ahead: see `evaluate`; batches of pieces.
        memory: of ``recognise``, for fast weights that are carried from piece to piece.
    """

    def __init__(
        self,
        recognise: Recognise,
        cutting: Cutting,
        batch_size: int = 1,
        ahead: int = 0,
        memory: FastWeightMemory | None = None,
    ) -> None:
        self.recognise, self.cutting, self.batch_size, self.ahead = recognise, cutting, batch_size, ahead
        self.carrying = contextlib.nullcontext if memory is None else memory.over_a_recording

    def __call__(
        self, recordings: Sequence[np.ndarray | LongRecording], speakers: Sequence[str | None] | None = None
    ) -> list[Answer | Callable[[], Answer]]:
        """See `lact_asr.inference.recogniser.Recogniser`; a long recording has no alternatives."""
        speakers = speakers or [None] * len(recordings)
        answers = []
        pairs = zip(recordings, speakers, strict=True)
        for is_long, group in itertools.groupby(pairs, lambda pair: isinstance(pair[0], LongRecording)):
            if is_long:
                for recording, speaker in group:
                    with self.carrying():
                        answers.append(self._transcribe(recording, speaker))
            else:
                answers += self.recognise(*zip(*group, strict=True))
        return answers

    def _transcribe(self, recording: LongRecording, speaker: str | None) -> Answer:
        answers, end_seconds, forced_cuts = [], 0.0, []
        try:
            for piece, answer in self._recognised(recording, speaker):
                answers.append(_from_start(answer, piece))
                end_seconds = piece.end_seconds
                forced_cuts += [_clock(end_seconds)] if piece.ends_in_speech else []
        except InputError as error:  # some damage only shows in decoding: what comes before it may be an hour's work
            if not answers:
                return error
            _warn(f"{error}; what comes after {_clock(end_seconds)} is not transcribed")
        if forced_cuts:
            _warn(
                f"{recording.path}: no silence within {self.cutting.longest_seconds:g} s, so it was cut where it is quietest, "
                f"at {', '.join(forced_cuts)}"
            )
        return _joined(answers)

    def _recognised(self, recording: LongRecording, speaker: str | None) -> Iterator[tuple[Piece, Answer]]:
        """The pieces and their answers; `ahead` batches are recognised before the first one's answers are asked for."""
        started = deque()
        for batch in _batches(self._with_progress(recording), self.batch_size):
            answers = self.recognise([piece.samples for piece in batch], [speaker] * len(batch))
            started.append(list(zip(batch, answers, strict=True)))
            if len(started) > self.ahead:
                yield from _finished(started.popleft())
        for pairs in started:
            yield from _finished(pairs)

    def _with_progress(self, recording: LongRecording) -> Iterator[Piece]:
        with tqdm(
            total=len(recording), desc=recording.path.name, unit_scale=1 / (60 * SAMPLE_RATE_HZ), bar_format=_MINUTES
        ) as bar:
            for piece in self.cutting.pieces(recording):
                yield piece
                bar.update(min(len(piece.samples), bar.total - bar.n))  # a header's length may be off by some samples


def _batches(pieces: Iterator[Piece], size: int) -> Iterator[list[Piece]]:
    while batch := list(itertools.islice(pieces, size)):
        yield batch


def _finished(pairs: Sequence[tuple[Piece, Answer | Callable[[], Answer]]]) -> Iterator[tuple[Piece, Answer]]:
    for piece, answer in pairs:
        yield piece, answer() if callable(answer) else answer


def _from_start(answer: Answer, piece: Piece) -> Answer:
    """A piece's answer with times from the start of the recording."""
    if isinstance(answer, InputError):
        return InputError(f"at {_clock(piece.start_seconds)}: {answer}")
    words = tuple(
        replace(
            word,
            start_seconds=word.start_seconds + piece.start_seconds,
            end_seconds=word.end_seconds + piece.start_seconds,
        )
        for word in answer.words
    )
    return replace(answer, words=words)


def _joined(answers: Sequence[Answer]) -> Answer:
    """One answer for a recording from those for its pieces."""
    if failed := [answer for answer in answers if isinstance(answer, InputError)]:
        return failed[0]
    with_ttt = answers[0].text_without_ttt is not None
    refusals = Counter(answer.ttt_refusal for answer in answers if answer.ttt_refusal)
    return Recognition(
        " ".join(filter(None, (answer.text for answer in answers))),
        " ".join(filter(None, (answer.text_without_ttt for answer in answers))) if with_ttt else None,
        "; ".join(f"{count} of {len(answers)} pieces: {reason}" for reason, count in refusals.items()) or None,
        tuple(word for answer in answers for word in answer.words),
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(seconds, 60)
    return f"{int(minutes) // 60}:{int(minutes) % 60:02}:{seconds:04.1f}"


def _warn(sentence: str) -> None:
    tqdm.write(sentence, file=sys.stderr)
