"""Reading recordings: any rate, channel count and container that libsndfile knows becomes float32 mono at 16 kHz.

Every way in which a file can be unusable ends in one `InputError` sentence that names the file; nothing is repaired
silently. libsndfile reads a shortened recording without complaint in several containers, so truncation is looked for
here: FLAC fails to decode; MP3 delivers fewer samples than its header promises; WAV, AIFF, AU, W64 and RF64 headers
claim more bytes than the file has; Ogg (Opus, Vorbis) ends inside a page. An Ogg stream that ends between two pages
is accepted even without its end-of-stream mark, as RFC 7845 section 4 asks: live recorders leave that mark out.
"""

from __future__ import annotations

import functools
import io
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile
import soxr

from lact_asr.errors import InputError, first_names, warn
from lact_asr.sample_rate import SAMPLE_RATE_HZ

MIN_SAMPLES = 400
"""Samples at 16 kHz that the convolutional front end needs for its first frame (25 ms)."""

AUDIO_EXTENSIONS = frozenset(
    {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64", ".sph"}
)

# Recordings, too, of telephones and videos, which libsndfile does not read.
FOREIGN_EXTENSIONS = frozenset(
    {".m4a", ".mp4", ".aac", ".wma", ".webm", ".mkv", ".mka", ".mov", ".amr", ".3gp", ".mpga", ".wv", ".ape"}
)

MIN_SAMPLE_RATE_HZ, MAX_SAMPLE_RATE_HZ = 1_000, 1_000_000
"""What a header may claim: beyond it holds no speech, and resampling a second would take minutes or gigabytes."""

_CONTAINER_MAGIC = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"FORM", b"caff", b"riff", b".snd", b"ID3", b"NIST")
# Size fields of libsndfile's header log that contradict the file: "data : 96000 (should be 47978)".
_CLAIMED_SIZE = re.compile(r"^\s*(data|SSND|Data Size|riff|Riff size)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)
# Programs that write WAV into a pipe do not know its size: they claim about 2 or 4 GiB, and readers take what is there.
_OPEN_ENDED_BYTES = 0x7FFF_0000
_SIZED_FORMATS = frozenset({"WAV", "WAVEX", "AIFF", "AU", "W64", "RF64"})
_MAX_OGG_PAGE_BYTES = 27 + 255 + 255 * 255
# MP3 headers without the encoder's delay count whole frames of 1,152 samples: a few missing ones are not truncation.
_MP3_SLACK_FRAMES, _MP3_SLACK_FRACTION = 4 * 1152, 0.02
_OPEN_TARS = 64
_CONVERT = "convert to WAV or FLAC first (ffmpeg -i a.m4a a.wav)"
_BLOCK_SAMPLES = 2**20  # of all channels


class TarMember(NamedTuple):
    """A recording inside an uncompressed tar file, as Shar folders keep them: where its bytes begin, and how many."""

    tar: Path
    name: str
    offset: int
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.name} in {self.tar}"

    def read_bytes(self) -> bytes:
        """The recording as it would be in a file of its own.

        Raises:
            OSError: the tar file cannot be read.
        """
        # A positioned read: processes that were forked share the file's position.
        return os.pread(_open_tar(self.tar).fileno(), self.num_bytes, self.offset)


@functools.lru_cache(_OPEN_TARS)
def _open_tar(path: Path) -> BinaryIO:
    """Kept open, because opening is what storage that dislikes small files is slow at."""
    return path.open("rb", buffering=0)


@dataclass(frozen=True)
class AudioHeader:
    """What a recording's header says: frames (samples of one channel at the file's own rate), rate in Hz, channels."""

    num_frames: int
    sample_rate_hz: int
    num_channels: int

    @property
    def duration_seconds(self) -> float:
        """Length of the recording in seconds."""
        return self.num_frames / self.sample_rate_hz


def read_audio(
    source: str | os.PathLike | TarMember,
    start_seconds: float = 0.0,
    duration_seconds: float | None = None,
    channel: int | None = None,
) -> np.ndarray:
    """Read a recording, or a part of it, as the model takes it.

    Channels are averaged unless one is named; other rates are converted with soxr's high-quality polyphase filter.

    Args:
        source: the audio file.
        start_seconds: where to begin.
        duration_seconds: how much to read; None reads to the end.
        channel: which to take, from 0; None takes the mean of all.

    Returns:
        float32 array [samples], mono, 16 kHz, nominally within [-1, 1].

    Raises:
        InputError: no such file, a folder, a device, empty, not audio, truncated or damaged, without samples, at an
            impossible rate, with NaN or infinite samples, a part that lies outside of the recording, or fewer than
            `MIN_SAMPLES` samples at 16 kHz.
    """
    path = source if isinstance(source, TarMember) else Path(source)
    with _open(path) as sound:
        _check_claimed_size(path, sound)
        start_frame, num_frames = _frame_range(path, sound, start_seconds, duration_seconds)
        samples = _decode(path, sound, start_frame, num_frames, channel)
        sample_rate_hz = sound.samplerate
    _check_finite(path, samples)
    if sample_rate_hz != SAMPLE_RATE_HZ:
        samples = soxr.resample(samples, sample_rate_hz, SAMPLE_RATE_HZ, quality="HQ")
        _check_finite(path, samples)  # near the largest floating-point number the filter overflows
    _check_length(path, samples.size)
    return np.ascontiguousarray(samples, dtype=np.float32)


def audio_blocks(source: str | os.PathLike, block_seconds: float = 30.0) -> Iterator[np.ndarray]:
    """Read a recording of any length block by block: joined, the blocks are what `read_audio` gives for the whole of it.

    Args:
        source: the audio file.
        block_seconds: how much is read, and held in memory, at a time.

    Yields:
        float32 arrays [samples], mono, 16 kHz; their lengths may differ a little where the rate is converted.

    Raises:
        InputError: as `read_audio`; what only decoding shows is raised where it is reached.
    """
    path = Path(source)
    with _open(path) as sound:
        _check_claimed_size(path, sound)
        _check_length(path, round(sound.frames * SAMPLE_RATE_HZ / sound.samplerate))
        resampler = None
        if sound.samplerate != SAMPLE_RATE_HZ:
            resampler = soxr.ResampleStream(sound.samplerate, SAMPLE_RATE_HZ, 1, quality="HQ")
        block_frames = max(1, round(block_seconds * sound.samplerate))
        for samples in _decoded_blocks(path, sound, 0, sound.frames, None, block_frames):
            _check_finite(path, samples)
            if resampler is not None:
                samples = resampler.resample_chunk(np.ascontiguousarray(samples))
                _check_finite(path, samples)
            yield np.ascontiguousarray(samples)
        if resampler is not None:
            yield resampler.resample_chunk(np.empty(0, np.float32), last=True)


def read_audio_header(path: str | os.PathLike) -> AudioHeader:
    """Read length, rate and channels of a recording without decoding it.

    Raises:
        InputError: as `read_audio`, as far as the header shows it.
    """
    path = Path(path)
    with _open(path) as sound:
        return AudioHeader(sound.frames, sound.samplerate, sound.channels)


def audio_duration_seconds(path: str | os.PathLike) -> float:
    """Length in seconds according to the header (see `read_audio_header`)."""
    return read_audio_header(path).duration_seconds


def find_audio_files(folder: str | os.PathLike) -> list[Path]:
    """List the recordings below a folder, by extension, sorted by path; hidden files are left out.

    Warns of those in formats that cannot be read.

    Raises:
        InputError: no such folder, not a folder, or no recording in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder" if folder.exists() else f"no such folder: {folder}")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_EXTENSIONS | FOREIGN_EXTENSIONS
        and not path.name.startswith(".")
        and path.is_file()
    )
    foreign = [path for path in found if path.suffix.lower() in FOREIGN_EXTENSIONS]
    readable = [path for path in found if path.suffix.lower() in AUDIO_EXTENSIONS]
    if foreign:
        names = first_names([str(path.relative_to(folder)) for path in foreign])
        passed_over = f"{len(foreign)} recording{'s' * (len(foreign) != 1)} in formats that cannot be read ({names})"
        if not readable:
            raise InputError(f"{folder} holds {passed_over}: {_CONVERT}")
        warn(f"{folder} holds {passed_over}, which are passed over: {_CONVERT}")
    if not readable:
        raise InputError(f"no audio files in {folder} (looked for {', '.join(sorted(AUDIO_EXTENSIONS))})")
    return readable


class _SequentialFile(soundfile.SoundFile):
    """A file that is read forward: soundfile would seek after each reading of a seekable one, which garbles MP3."""

    def seekable(self) -> bool:
        return False


def _open(path: Path | TarMember) -> soundfile.SoundFile:
    """Open a recording that has samples, or say in one sentence why that is impossible."""
    if not isinstance(path, TarMember) and not os.path.isfile(path):  # a pipe would be waited for, a device has no end
        raise InputError(_why_unreadable(path))
    try:
        sound = _SequentialFile(io.BytesIO(path.read_bytes()) if isinstance(path, TarMember) else _name(path))
    # TypeError: ".raw" has no header to give rate and channels
    except (soundfile.SoundFileError, OSError, TypeError, ValueError):
        raise InputError(_why_unreadable(path)) from None
    if sound.frames <= 0:
        sound.close()
        raise InputError(f"{path} has a header but no samples: its length is zero")
    if not MIN_SAMPLE_RATE_HZ <= sound.samplerate <= MAX_SAMPLE_RATE_HZ:
        sound.close()
        limits = f"{MIN_SAMPLE_RATE_HZ:,} to {MAX_SAMPLE_RATE_HZ:,} Hz"
        raise InputError(f"{path} claims a sample rate of {sound.samplerate:,} Hz: only {limits} can be read")
    return sound


def _name(path: Path) -> str | bytes:
    """As the system knows it: a name need not be UTF-8, which soundfile takes it for."""
    return str(path) if os.name == "nt" else os.fsencode(path)


def _why_unreadable(path: Path | TarMember) -> str:
    try:
        if isinstance(path, TarMember):
            magic = path.read_bytes()[:4]
        else:
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                return f"{path} is a folder, not an audio file"
            if not stat.S_ISREG(mode):
                return f"{path} is a device or a pipe: only a file can be read"
            with path.open("rb") as file:
                magic = file.read(4)
    except (FileNotFoundError, ValueError):  # ValueError: a name that no file can have
        return f"no such audio file: {path}"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}"
    if not magic:
        return f"{path} is empty (0 bytes)"
    if magic.startswith(_CONTAINER_MAGIC):
        return f"{path} is a truncated or damaged audio file: its header cannot be read"
    if os.path.splitext(str(path))[1].lower() in FOREIGN_EXTENSIONS:
        return f"{path} is in a format that cannot be read here: {_CONVERT}"
    return f"{path} is not audio that can be read here (WAV, FLAC, MP3, Ogg Opus, Ogg Vorbis, AIFF and others can)"


def _check_claimed_size(path: Path | TarMember, sound: soundfile.SoundFile) -> None:
    """Raise InputError where the container shows that the end of the file is missing."""
    if sound.format in _SIZED_FORMATS:
        for field, claimed, present in _CLAIMED_SIZE.findall(sound.extra_info):
            # The size of a whole RIFF file counts here only where the log has nothing on its data (W64, RF64).
            if field in ("riff", "Riff size") and sound.format not in ("W64", "RF64"):
                continue
            if int(present) + 1 < int(claimed) < _OPEN_ENDED_BYTES:
                raise InputError(
                    f"{path} is truncated: its header claims {int(claimed):,} bytes, {int(present):,} are there"
                )
    elif sound.format == "OGG" and _ends_inside_ogg_page(path):
        raise InputError(f"{path} is truncated: its last Ogg page is incomplete")


def _ends_inside_ogg_page(path: Path | TarMember) -> bool:
    """Whether the last Ogg page of the file (RFC 3533 section 6) announces more bytes than follow."""
    if isinstance(path, TarMember):
        tail = path.read_bytes()[-_MAX_OGG_PAGE_BYTES:]
    else:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _MAX_OGG_PAGE_BYTES))
            tail = file.read()
    page = tail[tail.rfind(b"OggS\x00") :] if b"OggS\x00" in tail else b""
    if len(page) < 27 or len(page) < 27 + page[26]:
        return True
    return len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])


def _frame_range(
    path: Path | TarMember, sound: soundfile.SoundFile, start_seconds: float, duration_seconds: float | None
) -> tuple[int, int]:
    """Start and count, in frames at the file's rate, of the part asked for."""
    start = round(start_seconds * sound.samplerate)
    count = sound.frames - start if duration_seconds is None else round(duration_seconds * sound.samplerate)
    # Two frames of slack: lengths in seconds are rounded where they are written down.
    if start < 0 or count <= 0 or start + count > sound.frames + 2:
        length = sound.frames / sound.samplerate
        until = "its end" if duration_seconds is None else f"{start_seconds + duration_seconds:.3f} s"
        raise InputError(f"{path} is {length:.3f} s long: the part from {start_seconds:.3f} s to {until} is not in it")
    return start, min(count, sound.frames - start)


def _decode(
    path: Path | TarMember, sound: soundfile.SoundFile, start_frame: int, num_frames: int, channel: int | None
) -> np.ndarray:
    """Decode float32 [frames], one channel or the mean of all; fewer than asked for means a truncated file."""
    block_frames = max(1, _BLOCK_SAMPLES // sound.channels)
    blocks = list(_decoded_blocks(path, sound, start_frame, num_frames, channel, block_frames))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _decoded_blocks(
    path: Path | TarMember, sound: soundfile.SoundFile, start_frame: int, num_frames: int, channel: int | None,
    block_frames: int,
) -> Iterator[np.ndarray]:  # fmt: skip
    """Block by block, so that memory follows what is there and not what the header claims; see `_decode`."""
    missing = num_frames
    try:
        if start_frame:
            sound.seek(start_frame)
        while missing > 0:
            frames = sound.read(min(missing, block_frames), dtype="float32", always_2d=True)
            if not len(frames):
                break
            missing -= len(frames)
            yield _one_channel(frames, channel)
    except (soundfile.SoundFileError, RuntimeError):
        raise InputError(f"{path} is truncated or damaged: decoding it fails before its end") from None
    slack = max(_MP3_SLACK_FRAMES, _MP3_SLACK_FRACTION * num_frames) if sound.format == "MP3" else 0
    if missing > slack or missing == num_frames:
        raise InputError(
            f"{path} is truncated: its header promises {num_frames:,} samples and {num_frames - missing:,} are there"
        )


def _one_channel(frames: np.ndarray, channel: int | None) -> np.ndarray:
    """Of [frames, channels]."""
    if channel is None and frames.shape[1] > 1:
        with np.errstate(over="ignore"):  # what becomes infinite is refused
            return frames.mean(axis=1, dtype=np.float32)
    return frames[:, channel or 0]


def _check_length(path: Path | TarMember, num_samples: int) -> None:
    if num_samples < MIN_SAMPLES:
        raise InputError(
            f"{path} is too short: {num_samples} samples at 16 kHz, one frame needs {MIN_SAMPLES} (25 milliseconds)"
        )


def _check_finite(path: Path | TarMember, samples: np.ndarray) -> None:
    finite = np.isfinite(samples)
    if not finite.all():
        bad = samples.size - int(finite.sum())
        raise InputError(f"{path} holds {bad} samples that are not finite numbers (NaN or infinity), of {samples.size}")
