"""How much each moment of a recording sounds like speech, and below what it is silence: silero-vad, or energy alone."""

from __future__ import annotations

import importlib.util
from typing import Protocol

import numpy as np

from lact_asr.errors import InputError
from lact_asr.sample_rate import SAMPLE_RATE_HZ

ACTIVITY_FRAME_SAMPLES = 512
"""Samples at 16 kHz of one value of activity: 32 ms, what silero-vad takes at a time."""

DETECTORS = ("silero", "energy")
_SILERO_IS_INSTALLED = importlib.util.find_spec("silero_vad") is not None
_SILERO_THRESHOLD = 0.3
_BACKGROUND_PERCENTILE, _SPEECH_PERCENTILE = 5, 95
_ABOVE_BACKGROUND_DB, _BELOW_SPEECH_DB = 6.0, 30.0


class VoiceActivity(Protocol):
    """Follows one recording from its beginning to its end."""

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """The activity of the next frames: float32 [samples], any number, 16 kHz -> float [frames]; a rest waits for more."""

    def threshold(self, activity: np.ndarray) -> float:
        """Below which a frame of this stretch of activity, [frames], is silence."""


class EnergyActivity:
    """The power of each frame.

    Silence is what is within 6 dB of the background (the 5th percentile of the stretch), or 30 dB below speech (the 95th).
    """

    def __init__(self) -> None:
        self._rest = np.empty(0, np.float32)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """See `VoiceActivity`; mean squares."""
        frames, self._rest = _frames(self._rest, samples)
        return np.square(frames, dtype=np.float64).mean(axis=1)

    def threshold(self, activity: np.ndarray) -> float:
        """See `VoiceActivity`."""
        background, speech = np.percentile(activity, (_BACKGROUND_PERCENTILE, _SPEECH_PERCENTILE))
        return max(background * 10 ** (_ABOVE_BACKGROUND_DB / 10), speech * 10 ** (-_BELOW_SPEECH_DB / 10))


class SileroActivity:
    """The probability of speech that silero-vad gives each frame (Silero Team, github.com/snakers4/silero-vad).

    Raises:
        InputError: the package silero-vad is not installed.
    """

    def __init__(self) -> None:
        if not _SILERO_IS_INSTALLED:
            raise InputError("--voice_activity silero needs the package silero-vad: pip install 'lact-asr[vad]'")
        import torch

        threads = torch.get_num_threads()
        from silero_vad import load_silero_vad

        torch.set_num_threads(threads)  # importing it sets 1 for everybody
        self._model, self._torch = load_silero_vad(), torch
        self._rest = np.empty(0, np.float32)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """See `VoiceActivity`; probabilities."""
        frames, self._rest = _frames(self._rest, samples)
        with self._torch.no_grad():
            return np.array([self._model(frame, SAMPLE_RATE_HZ).item() for frame in self._torch.from_numpy(frames)])

    def threshold(self, activity: np.ndarray) -> float:
        """See `VoiceActivity`."""
        return _SILERO_THRESHOLD


def choose_detector(name: str) -> str:
    """ "silero" or "energy" for ``--voice_activity``; auto takes silero where it is installed."""
    return ("silero" if _SILERO_IS_INSTALLED else "energy") if name == "auto" else name


def make_voice_activity(name: str) -> VoiceActivity:
    """A detector of `DETECTORS` at the beginning of a recording; raises `InputError` where its package is missing."""
    return SileroActivity() if name == "silero" else EnergyActivity()


def _frames(rest: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(whole frames [frames, `ACTIVITY_FRAME_SAMPLES`], the samples after them)."""
    samples = np.concatenate([rest, samples])
    whole = len(samples) - len(samples) % ACTIVITY_FRAME_SAMPLES
    return samples[:whole].reshape(-1, ACTIVITY_FRAME_SAMPLES), samples[whole:]
