"""Random changes to training audio: speed and background noise, seeded by utterance and epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import soxr

from lact_asr.audio import SAMPLE_RATE_HZ
from lact_asr.data.noise import mix_at_snr


class WaveformAugmentation:
    """A transform for `lact_asr.data.batching.make_dataloader`.

    What happens to an utterance follows from the seed and the key alone, never from the order of utterances or the
    number of workers.

    Args:
        speed_factors: one is drawn for each utterance; 1.1 is a tenth faster, and higher in pitch (Ko et al. 2015).
        noises: name -> float32 [samples] at 16 kHz; empty for none.
        noise_snr_db: one is drawn for each utterance that gets noise.
        noise_prob: share of utterances that get noise.
        seed: of all choices.
    """

    def __init__(
        self,
        speed_factors: Sequence[float] = (1.0,),
        noises: Mapping[str, np.ndarray] | None = None,
        noise_snr_db: Sequence[float] = (5.0, 10.0, 15.0, 20.0),
        noise_prob: float = 0.5,
        seed: int = 0,
    ) -> None:
        self.speed_factors = tuple(speed_factors)
        self.noises = [noises[name] for name in sorted(noises)] if noises else []
        self.noise_snr_db = tuple(noise_snr_db)
        self.noise_prob = noise_prob
        self.seed = seed

    def __call__(self, samples: np.ndarray, key: str) -> np.ndarray:
        """Augment one utterance: float32 [samples] -> float32, of another length where the speed changes."""
        digest = hashlib.sha256(f"{self.seed}/{key}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        samples = change_speed(samples, float(rng.choice(self.speed_factors)))
        if self.noises and rng.random() < self.noise_prob:
            samples = self._add_noise(samples, rng)
        return samples

    def _add_noise(self, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noise = self.noises[int(rng.integers(len(self.noises)))]
        piece = np.resize(np.roll(noise, -int(rng.integers(len(noise)))), len(samples))
        return mix_at_snr(samples, piece, float(rng.choice(self.noise_snr_db)))


def change_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    """Play ``factor`` times as fast by resampling: float32 [n] -> float32 [n / factor]."""
    if factor == 1.0:
        return samples
    return soxr.resample(samples, SAMPLE_RATE_HZ * factor, SAMPLE_RATE_HZ, quality="MQ").astype(np.float32)
