"""Folders of noise or impulse responses that training draws from; what does not fit into memory is read again when it is drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lact_asr.audio import find_audio_files, read_audio, read_audio_header
from lact_asr.errors import InputError, warn

KEPT_BYTES = 1 << 30  # MUSAN would take 25 GB, OpenSLR 28 four, in each process
_THREADS = 16
_FILES_AT_ONCE = 32  # read ahead, so that a folder need not fit into memory
_PROGRESS_BAR_FROM = 1_000

Source = tuple[Path, int | None]  # a file, and its channel; None for the mean of all


class Recordings(Mapping[str, np.ndarray]):
    """Name -> float32 [samples], mono, 16 kHz.

    Args:
        sources: name -> where it is read from, unless it is kept.
        kept: what stays in memory.
    """

    def __init__(self, sources: Mapping[str, Source], kept: Mapping[str, np.ndarray]) -> None:
        self._sources, self._kept = dict(sources), dict(kept)
        self._lost: set[str] = set()  # each is warned of once in each process

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self._read(name)
        except InputError as error:
            return self._next_readable(name, error)

    def _read(self, name: str) -> np.ndarray:
        if name in self._kept:
            return self._kept[name]
        path, channel = self._sources[name]
        return read_audio(path, channel=channel)

    def _next_readable(self, name: str, error: InputError) -> np.ndarray:
        """In place of a recording that could be read at the start of a run: one file must not end days of training."""
        names = list(self)
        place = names.index(name)
        for other in (*names[place + 1 :], *names[:place]):
            with contextlib.suppress(InputError):
                samples = self._read(other)
                if name not in self._lost:
                    self._lost.add(name)
                    warn(f"{error}; where it is drawn from now on, {other} is in its place.")
                return samples
        raise error

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def load_recordings(
    folder: str | Path, use: str, each_channel: bool = False, kept_bytes: int = KEPT_BYTES
) -> Recordings:
    """Read every recording in a folder and the folders in it once; one that cannot be read or is silent is left out, with a warning.

    Args:
        folder: holds them, in any format that `lact_asr.audio` reads.
        use: what for, in error messages.
        each_channel: channels are recordings of their own; else they are averaged.
        kept_bytes: so much stays in memory.

    Returns:
        By path in the folder, without extension (with it where another recording differs in nothing else), ``#`` and the channel
        where there are several; in the order of paths.

    Raises:
        InputError: no such folder, no audio in it, or none that can be used.
    """
    folder, problems = Path(folder), []
    sources: dict[str, Source] = {}
    kept: dict[str, np.ndarray] = {}
    for path, channels in _read_all(find_audio_files(folder), each_channel):
        if isinstance(channels, InputError):
            problems.append(str(channels))
            continue
        name = _name(path.relative_to(folder), taken=sources)
        for channel, samples in channels:
            several = len(channels) > 1
            if not samples.any():
                problems.append(f"channel {channel} of {path} is silent" if several else f"{path} is silent")
                continue
            of_channel = f"{name}#{channel}" if several else name
            sources[of_channel] = path, channel
            if samples.nbytes <= kept_bytes:
                kept[of_channel] = samples
                kept_bytes -= samples.nbytes
    if not sources:
        raise InputError(f"no recording of {folder} can be used as {use}; the first: {problems[0]}")
    for problem in problems:
        warn(f"a recording is left out: {problem}.")
    return Recordings(sources, kept)


def _read_all(
    paths: list[Path], each_channel: bool
) -> Iterator[tuple[Path, list[tuple[int | None, np.ndarray]] | InputError]]:
    bar = tqdm(total=len(paths), desc="reading", unit=" files", disable=len(paths) < _PROGRESS_BAR_FROM, leave=False)
    with bar, ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(paths), _FILES_AT_ONCE):
            some = paths[start : start + _FILES_AT_ONCE]
            yield from zip(some, pool.map(partial(_read, each_channel=each_channel), some), strict=True)
            bar.update(len(some))


def _read(path: Path, each_channel: bool) -> list[tuple[int | None, np.ndarray]] | InputError:
    try:
        channels = range(read_audio_header(path).num_channels) if each_channel else (None,)
        return [(channel, read_audio(path, channel=channel)) for channel in channels]
    except InputError as error:
        return error


def _name(path: Path, taken: Mapping[str, Source]) -> str:
    plain = path.with_suffix("").as_posix()
    return path.as_posix() if plain in taken or f"{plain}#0" in taken else plain
