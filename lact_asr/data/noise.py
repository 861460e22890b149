"""Background noise at a chosen signal-to-noise ratio: real recordings or coloured noise, the same for an utterance every time.

    python -m lact_asr.data.noise --data_dir DIR --subset test-generated --output_dir OUT --snr_db 20 10 --noise_dir FOLDER
    python -m lact_asr.data.noise --data_dir DIR --subset test-generated --output_dir OUT --snr_db 20 10 --colour pink

writes OUT/test-generated-snr20 and OUT/test-generated-snr10: LibriSpeech's layout, same utterance ids and transcripts.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from lact_asr.audio import SAMPLE_RATE_HZ, find_audio_files, read_audio
from lact_asr.command_line import program_name
from lact_asr.data.atomic_folder import replacing_folder
from lact_asr.data.recordings import load_recordings
from lact_asr.errors import InputError, exit_on_input_error

COLOURS = {"white": 0, "pink": 1, "brown": 2}
"""Exponent a of the power spectral density ~ 1/f^a."""

# Below hearing, where 1/f² would put nearly all of the power.
_LOWEST_HZ = 20.0
_COLOURED_SECONDS = 120


def mix_at_snr(speech: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Add noise to speech so that their powers have a given ratio.

    y = x + g n, with g = sqrt(mean(x²) / (mean(n²) 10^(snr_db / 10))), means over the whole utterance. Never clips:
    where |y| exceeds 1, all of y is divided by its peak, which leaves the ratio as it is. Silent speech stays silent.

    Args:
        speech: Float [samples].
        noise: Float [at least 1]; repeated if shorter than the speech, cut if longer.
        snr_db: Signal-to-noise ratio in dB.

    Returns:
        float32 [samples], within [-1, 1] if anything had to be added.

    Raises:
        InputError: The noise is empty or silent over the length of the speech.
    """
    if noise.size == 0:
        raise InputError("the noise has no samples")
    speech = np.asarray(speech, dtype=np.float64)
    noise = np.resize(np.asarray(noise, dtype=np.float64), speech.shape)
    noise_power = np.mean(noise**2) if noise.size else 0.0
    if noise.size and noise_power == 0.0:
        raise InputError("the noise is silent, so no signal-to-noise ratio can be set")
    if not speech.any():
        return speech.astype(np.float32)
    gain = math.sqrt(np.mean(speech**2) / (noise_power * 10 ** (snr_db / 10)))
    mixture = speech + gain * noise
    return (mixture / max(1.0, np.abs(mixture).max())).astype(np.float32)


def coloured_noise(num_samples: int, colour: str, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise with power spectral density ~ 1/f^a: a = 0 (white), 1 (pink), 2 (brown), nothing below 20 Hz.

    White Gaussian noise is shaped in the frequency domain by f^(-a/2).

    Args:
        num_samples: Length at 16 kHz, at least 1,600 (0.1 s; shorter noise has too few frequencies to have a colour).
        colour: ``white``, ``pink`` or ``brown``.
        rng: Decides the noise.

    Returns:
        float32 [num_samples], power 1 (so it exceeds 1; `mix_at_snr` scales it).

    Raises:
        InputError: Unknown colour, or too short.
    """
    if colour not in COLOURS:
        raise InputError(f"unknown noise colour {colour!r}; choose from {', '.join(COLOURS)}")
    if num_samples < SAMPLE_RATE_HZ // 10:
        raise InputError(f"coloured noise needs at least {SAMPLE_RATE_HZ // 10} samples, not {num_samples}")
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    frequencies_hz = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE_HZ)
    audible = frequencies_hz >= _LOWEST_HZ
    spectrum[~audible] = 0
    spectrum[audible] *= frequencies_hz[audible] ** (-COLOURS[colour] / 2)
    noise = np.fft.irfft(spectrum, num_samples)
    return (noise / np.sqrt(np.mean(noise**2))).astype(np.float32)


def coloured_noises(colours: Iterable[str], seed: int = 0) -> dict[str, np.ndarray]:
    """Two minutes of `coloured_noise` of each colour: name -> float32 [samples]."""
    return {
        colour: coloured_noise(_COLOURED_SECONDS * SAMPLE_RATE_HZ, colour, np.random.default_rng(seed))
        for colour in colours
    }


def load_noises(noise_dir: str | Path | None, colour: str, seed: int) -> Mapping[str, np.ndarray]:
    """The recordings of a folder, or without one noise of a colour (`coloured_noises`)."""
    return coloured_noises([colour], seed) if noise_dir is None else load_recordings(noise_dir, "noise")


def _wrapped_window(noise: np.ndarray, start: int, length: int) -> np.ndarray:
    """`length` samples from `start` on, going on at the beginning where the recording ends."""
    return np.take(noise, np.arange(start, start + length), mode="wrap")


def utterance_generator(seed: int, utterance_id: str) -> np.random.Generator:
    """A generator that depends on the seed and the utterance's name only, not on order or process."""
    # Python's own hash() of a string differs from process to process.
    digest = hashlib.blake2b(f"{seed}:{utterance_id}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


class NoiseMixer:
    """Adds to each utterance a noise that depends on the seed and the utterance's name only, not on order or process.

    Call it as ``mixer(samples, utterance_id)``. For other noise in each epoch, put the epoch into the name.
    """

    def __init__(self, noises: Mapping[str, np.ndarray], snr_db: float | tuple[float, float], seed: int = 0) -> None:
        """
        Args:
            noises: Name -> float [samples], as of `load_noises`; a silent one cannot be mixed.
            snr_db: Signal-to-noise ratio in dB, or the bounds of a range from which each utterance draws its own.
            seed: Another seed gives every utterance another file, offset and ratio.

        Raises:
            InputError: No noises, or a ratio that is not a finite number or not a range.
        """
        self._names, self._noises = sorted(noises), noises
        self._snr_range_db = (snr_db, snr_db) if isinstance(snr_db, (int, float)) else tuple(snr_db)
        self._seed = seed
        if not self._names:
            raise InputError("no noises given")
        low_db, high_db = self._snr_range_db
        if not (math.isfinite(low_db) and math.isfinite(high_db) and low_db <= high_db):
            raise InputError(f"snr_db must be a finite number, or a range from low to high, not {snr_db}")

    def __call__(self, samples: np.ndarray, utterance_id: str) -> np.ndarray:
        """Mix one utterance: float [samples] at 16 kHz -> float32 [samples]. See `mix_at_snr`."""
        return self.mix(samples, utterance_generator(self._seed, utterance_id))[0]

    def mix(self, samples: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict]:
        """As a call, with a generator in place of the name; also returns what it drew: noise, start_sample, snr_db."""
        name = self._names[int(rng.integers(len(self._names)))]
        noise = self._noises[name]
        start = int(rng.integers(noise.size))
        snr_db = float(rng.uniform(*self._snr_range_db))
        window = _wrapped_window(noise, start, len(samples))
        if not window.any():  # a stretch of digital silence in the recording
            start = int(np.abs(noise).argmax())
            window = _wrapped_window(noise, start, len(samples))
        return mix_at_snr(samples, window, snr_db), {"noise": name, "start_sample": start, "snr_db": snr_db}


# ---- noisy copies of a subset -----------------------------------------------------------------------------------------


def write_noisy_subset(
    subset_dir: Path, target_dir: Path, mixer: Callable[[np.ndarray, str], np.ndarray]
) -> list[tuple[str, str]]:
    """Write a noisy copy of a LibriSpeech-layout subset, complete or not at all.

    Args:
        subset_dir: The clean subset: any folders, audio files named by utterance id, ``.trans.txt`` files.
        target_dir: The new subset; must not exist. Audio becomes 16 kHz FLAC, transcripts are copied.
        mixer: As `NoiseMixer`; clean samples and utterance id -> noisy samples.

    Returns:
        (file, reason) of each recording that could not be read and is left out.

    Raises:
        InputError: No such subset, none of its files usable, `target_dir` exists or cannot be written.
    """
    if not subset_dir.is_dir():
        raise InputError(f"there is no subset folder {subset_dir}")
    if target_dir.exists():
        raise InputError(f"{target_dir} exists already; remove it, or choose another --output_dir")
    problems: list[tuple[str, str]] = []
    paths = find_audio_files(subset_dir)
    with replacing_folder(target_dir) as new:
        for path in tqdm(paths, desc=target_dir.name, unit="utt", disable=len(paths) < 50):
            target = new / path.relative_to(subset_dir).with_suffix(".flac")
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                noisy = mixer(read_audio(path), path.stem)
            except InputError as error:
                problems.append((str(path), str(error)))
                continue
            soundfile.write(target, np.round(noisy * 32767).astype(np.int16), SAMPLE_RATE_HZ, subtype="PCM_16")
        if len(problems) == len(paths):
            raise InputError(f"no recording of {subset_dir} can be used; the first: {problems[0][1]}")
        for path in sorted(subset_dir.rglob("*.trans.txt")):
            target = new / path.relative_to(subset_dir)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return problems


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program_name("python -m lact_asr.data.noise"),
        description="Write noisy copies of a subset in LibriSpeech's layout.",
    )
    parser.add_argument("--data_dir", required=True, help="corpus that holds the subset")
    parser.add_argument("--subset", required=True, help="folder in --data_dir, e.g. test-generated")
    parser.add_argument("--output_dir", required=True, help="where SUBSET-snr20 etc. go; may be --data_dir")
    parser.add_argument("--snr_db", type=float, nargs="+", required=True, help="signal-to-noise ratios in dB")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--noise_dir", help="folder of noise recordings")
    kind.add_argument("--colour", choices=sorted(COLOURS), help="coloured Gaussian noise instead of recordings")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


@exit_on_input_error
def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse_arguments(arguments)
    noises = load_noises(options.noise_dir, options.colour, options.seed)
    mixers = {f"{options.subset}-snr{snr_db:g}": NoiseMixer(noises, snr_db, options.seed) for snr_db in options.snr_db}
    for name, mixer in mixers.items():
        target = Path(options.output_dir, name)
        for path, reason in write_noisy_subset(Path(options.data_dir, options.subset), target, mixer):
            print(f"left out {path}: {reason}", file=sys.stderr)
        print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
