"""Random changes to training audio: speed, rooms and background noise, seeded by utterance and epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import soxr

from lact_asr.audio import SAMPLE_RATE_HZ
from lact_asr.data.noise import NoiseMixer
from lact_asr.data.reverberation import reverberate
from lact_asr.errors import InputError


class WaveformAugmentation:
    """A transform for `lact_asr.data.batching.make_dataloader`.

    What happens to an utterance follows from the seed and the key alone, never from the order of utterances or the
    number of workers.

    Args:
        speed_factors: one is drawn for each utterance; 1.1 is a tenth faster, and higher in pitch (Ko et al. 2015).
        mixer: adds noise, as it is heard in the room; None for none.
        noise_prob: share of utterances that get noise.
        seed: of all choices but the mixer's own.
        impulse_responses: of rooms, as of `load_impulse_responses`; one is drawn for each utterance that gets one.
        rir_prob: share of utterances that are put into a room.

    Raises:
        InputError: a speed outside 0.5 to 2, or a share outside 0 to 1.
    """

    def __init__(
        self,
        speed_factors: Sequence[float] = (1.0,),
        mixer: NoiseMixer | None = None,
        noise_prob: float = 0.5,
        seed: int = 0,
        impulse_responses: Mapping[str, np.ndarray] | None = None,
        rir_prob: float = 0.5,
    ) -> None:
        if not speed_factors or not all(0.5 <= factor <= 2.0 for factor in speed_factors):
            raise InputError(f"speed factors must be between 0.5 and 2, not {speed_factors}.")
        if not 0 <= noise_prob <= 1:
            raise InputError(f"the share of utterances with noise must be between 0 and 1, not {noise_prob}.")
        if not 0 <= rir_prob <= 1:
            raise InputError(f"the share of utterances in rooms must be between 0 and 1, not {rir_prob}.")
        self.impulse_responses, self.rir_prob = impulse_responses or {}, rir_prob
        self.rooms = list(self.impulse_responses)
        self.speed_factors, self.mixer, self.noise_prob, self.seed = tuple(speed_factors), mixer, noise_prob, seed

    def __call__(self, samples: np.ndarray, key: str) -> np.ndarray:
        """Augment one utterance: float32 [samples] -> float32, of another length where the speed changes."""
        rng = self._generator(key)
        samples = self._before_noise(samples, rng)
        if self.mixer is not None and rng.random() < self.noise_prob:
            samples = self.mixer(samples, key)
        return samples

    def speed(self, key: str) -> float:
        """The speed that a call gives this utterance, for who plans batches by what they will last."""
        return self._draw_speed(self._generator(key))

    def without_noise(self, samples: np.ndarray, key: str) -> np.ndarray:
        """The same utterance at the same speed in the same room before noise was added: as a call, and equally long."""
        return self._before_noise(samples, self._generator(key))

    def _generator(self, key: str) -> np.random.Generator:
        digest = hashlib.blake2b(f"{self.seed}/{key}".encode(), digest_size=8).digest()
        return np.random.default_rng(int.from_bytes(digest, "little"))

    def _draw_speed(self, rng: np.random.Generator) -> float:
        return float(rng.choice(self.speed_factors))

    def _before_noise(self, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        samples = change_speed(samples, self._draw_speed(rng))
        if self.rooms and rng.random() < self.rir_prob:
            room = self.rooms[int(rng.integers(len(self.rooms)))]
            samples = reverberate(samples, self.impulse_responses[room])
        return samples


def change_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    """Play ``factor`` times as fast by resampling: float32 [n] -> float32 [n / factor]."""
    if factor == 1.0:
        return samples
    return soxr.resample(samples, SAMPLE_RATE_HZ * factor, SAMPLE_RATE_HZ, quality="MQ").astype(np.float32)
