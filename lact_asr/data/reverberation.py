"""Rooms: speech convolved with impulse responses that were recorded, or simulated, in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lact_asr.data.recordings import Recordings, load_recordings


def load_impulse_responses(folder: str | Path) -> Recordings:
    """Every channel of every recording in a folder (`load_recordings`).

    Channels are responses of their own (microphones of an array stand in different places), so they are not averaged.
    """
    return load_recordings(folder, "an impulse response", each_channel=True)


def reverberate(samples: np.ndarray, impulse_response: np.ndarray) -> np.ndarray:
    """Put speech into a room.

    y = g (x ∗ h), from the direct sound (the largest |h|) on, so that words stay where they are in time; g gives y the
    power of x. The convolution is a product of Fourier transforms.

    Args:
        samples: float32 [samples] at 16 kHz.
        impulse_response: float32 [at least 1] at 16 kHz, not silent.

    Returns:
        float32 [samples], as many as came in.
    """
    wet = _convolve(samples, impulse_response)
    direct = int(np.abs(impulse_response).argmax())
    wet = wet[direct : direct + len(samples)]
    power = np.mean(wet**2, dtype=np.float64)
    gain = np.sqrt(np.mean(samples**2, dtype=np.float64) / power) if power else 1.0
    return (gain * wet).astype(np.float32)


def _convolve(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    """All of x ∗ h, float64. By NumPy, whose transform does not round otherwise with another number of threads."""
    length = len(samples) + len(response) - 1
    size = 1 << (length - 1).bit_length()
    return np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)[:length]
