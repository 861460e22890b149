"""Long recordings in pieces: every sample in exactly one, the cuts in silence where there is any."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from lact_asr.errors import InputError
from lact_asr.inference.long_audio.voice_activity import ACTIVITY_FRAME_SAMPLES, VoiceActivity
from lact_asr.sample_rate import SAMPLE_RATE_HZ

_FRAMES_A_SECOND = SAMPLE_RATE_HZ / ACTIVITY_FRAME_SAMPLES
_SHORTEST_REST = round(_FRAMES_A_SECOND)  # no piece is shorter than a second, unless the recording is
_SHORTEST_SILENCE = round(0.2 * _FRAMES_A_SECOND)
_AROUND_QUIETEST = 2  # frames on either side of a cut that have to be quiet where none is silent


@dataclass(frozen=True)
class Piece:
    """A part of a recording.

    Attributes:
        start_sample: where it begins, at 16 kHz.
        samples: float32 [samples].
        ends_in_speech: whether it had to be cut where nobody paused.
    """

    start_sample: int
    samples: np.ndarray
    ends_in_speech: bool = False

    @property
    def start_seconds(self) -> float:
        """Where it begins in the recording."""
        return self.start_sample / SAMPLE_RATE_HZ

    @property
    def end_seconds(self) -> float:
        """Where it ends in the recording."""
        return (self.start_sample + len(self.samples)) / SAMPLE_RATE_HZ


def cut_at_silence(
    blocks: Iterable[np.ndarray], longest_seconds: float, pause_seconds: float, voice_activity: VoiceActivity
) -> Iterator[Piece]:
    """Cut a recording, whatever its blocks, into pieces of at most so many seconds; joined, they are the recording.

    A piece ends in the middle of the first pause of ``pause_seconds``. Where there is none, it ends in the longest silence (of at
    least 0.2 s) of the second half of the seconds that it may have, and where there is none either, at the quietest point.

    Args:
        blocks: float32 [samples] each, 16 kHz, one after the other.
        longest_seconds: 4 or more.
        pause_seconds: 0.2 or more; infinity makes pieces as long as they may be.
        voice_activity: at the beginning of the recording.

    Yields:
        The pieces in order, at least one second each unless the recording is shorter.

    Raises:
        InputError: of the blocks, after the pieces of all that came before it.
    """
    cutter, damage = _Cutter(longest_seconds, pause_seconds, voice_activity), None
    blocks = iter(blocks)
    while damage is None:
        try:
            cutter.add(next(blocks))
        except StopIteration:
            break
        except InputError as error:
            damage = error
        while cutter.sees_enough:
            yield cutter.next_piece()
    while len(cutter.samples):
        yield cutter.next_piece()
    if damage is not None:
        raise damage


class _Cutter:
    """What has been read of a recording and not yet been given away."""

    def __init__(self, longest_seconds: float, pause_seconds: float, voice_activity: VoiceActivity) -> None:
        self.longest = int(longest_seconds * _FRAMES_A_SECOND)
        self.pause_frames = pause_seconds * _FRAMES_A_SECOND
        self.voice_activity = voice_activity
        self.start, self.samples = 0, np.empty(0, np.float32)
        self.activity, self.past = (
            np.empty(0),
            np.empty(0),
        )  # of ``samples``, and of as much as a piece may have before them

    def add(self, block: np.ndarray) -> None:
        self.samples = np.concatenate([self.samples, block])
        self.activity = np.concatenate([self.activity, self.voice_activity(block)])

    @property
    def sees_enough(self) -> bool:
        """Whether more samples would not change where the next piece ends."""
        return len(self.activity) >= self.longest + _SHORTEST_REST

    def next_piece(self) -> Piece:
        frame, in_speech = self._where_to_cut()
        count = len(self.samples) if frame is None else frame * ACTIVITY_FRAME_SAMPLES
        piece = Piece(self.start, self.samples[:count], in_speech)
        self.start, self.samples = self.start + count, self.samples[count:]
        self.past = np.concatenate([self.past, self.activity[:frame]])[-self.longest :]
        self.activity = self.activity[frame:]
        return piece

    def _where_to_cut(self) -> tuple[int | None, bool]:
        """(the frame that the next piece ends before, or None for the end of the recording; whether people speak there)."""
        activity = self.activity[: self.longest + _SHORTEST_REST]
        last = min(self.longest, len(activity) - _SHORTEST_REST)
        threshold = self.voice_activity.threshold(np.concatenate([self.past, activity]))
        silences = _runs(activity[:last] < threshold)
        for begin, end in silences:
            if begin > 0 and end - begin >= self.pause_frames and _middle(begin, end) >= _SHORTEST_REST:
                return _middle(begin, end), False
        if len(self.samples) <= self.longest * ACTIVITY_FRAME_SAMPLES:
            return None, False
        first = self.longest // 2
        begin, end = max(((max(first, begin), end) for begin, end in silences), key=_length, default=(0, 0))
        if end - begin >= _SHORTEST_SILENCE:
            return _middle(begin, end), False
        sums = np.convolve(activity, np.ones(2 * _AROUND_QUIETEST), mode="valid")
        return first + int(sums[first - _AROUND_QUIETEST : last - _AROUND_QUIETEST].argmin()), True


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """Where stretches of true values begin and end in bool [n]: [(begin, end), …], the end excluded."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _middle(begin: int, end: int) -> int:
    return (begin + end + 1) // 2


def _length(run: tuple[int, int]) -> int:
    return run[1] - run[0]
