"""Broken files by number: recordings, manifests, transcripts, results and checkpoints, each decided by the seed and its number alone.

A case starts from a file that works, or from nothing, and is spoiled once or several times: bytes are flipped, overwritten by numbers at
which programs break, cut off, doubled; headers claim what is not there; JSON values take other types. Half of the damaged Ogg Opus files get
their checksums mended (RFC 3533 section 6), for decoders refuse a page with a wrong one before they look into it. Ogg Vorbis files do not:
libvorbis 1.3.7 crashes on damaged codebooks under a right checksum (https://github.com/xiph/vorbis/issues/124, open).
"""

from __future__ import annotations

import functools
import io
import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch

from lact_asr import HybridASRConfig, HybridASRForCTC
from lact_asr.audio import SAMPLE_RATE_HZ
from lact_asr.checkpoint import FORMAT
from lact_asr.errors import InputError
from lact_asr.inference.results.utterance_result import UtteranceResult
from lact_asr.text import build_vocabulary

GOOD_RECORDING = "good.flac"  # what manifests name, beside them
GOOD_SECONDS = 0.5
SPEAKER, CHAPTER = "19", "198"


class Case(NamedTuple):
    """A file to be read: of which kind, its name, and what is in it."""

    kind: str
    name: str
    content: bytes


# ---------------------------------------------------------------- bytes

_SIZES = (0, 1, 2, 7, 255, 256, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
_HEADER_BYTES = 128


def _position(rng: random.Random, content: bytearray) -> int:
    """Most often in the header, where a byte decides more."""
    end = min(len(content), _HEADER_BYTES) if rng.random() < 0.7 else len(content)
    return rng.randrange(max(end, 1))


def _flip_bits(rng: random.Random, content: bytearray) -> None:
    for _ in range(rng.choice((1, 2, 8, 32)) if content else 0):
        content[_position(rng, content)] ^= 1 << rng.randrange(8)


def _overwrite_number(rng: random.Random, content: bytearray) -> None:
    start, width, order = _position(rng, content), rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    number = rng.choice(_SIZES) if rng.random() < 0.8 else rng.getrandbits(64)
    content[start : start + width] = (number % 2 ** (8 * width)).to_bytes(width, order)


def _fill(rng: random.Random, content: bytearray) -> None:
    start = _position(rng, content)
    length = min(rng.choice((1, 4, 16, 256, 4096)), len(content) - start)
    content[start : start + length] = bytes([rng.choice((0, 255))]) * length


def _cut_off(rng: random.Random, content: bytearray) -> None:
    del content[_position(rng, content) :]


def _cut_out(rng: random.Random, content: bytearray) -> None:
    start = _position(rng, content)
    del content[start : start + rng.choice((1, 2, 4, 64, 1024))]


def _insert(rng: random.Random, content: bytearray) -> None:
    start = _position(rng, content)
    content[start:start] = rng.randbytes(rng.choice((1, 2, 4, 64, 1024)))


def _repeat(rng: random.Random, content: bytearray) -> None:
    start = _position(rng, content)
    content[start:start] = content[start : start + rng.choice((4, 64, 1024))] * rng.choice((1, 2, 30))


_DAMAGES = (_flip_bits, _overwrite_number, _overwrite_number, _fill, _cut_off, _cut_out, _insert, _repeat)


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Bytes with one to four damages; now and then nothing, or nothing but noise behind the first four."""
    if rng.random() < 0.02:
        return b"" if rng.random() < 0.5 else content[:4] + rng.randbytes(rng.randrange(2000))
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(_DAMAGES)(rng, changed)
    return bytes(changed)


# ---------------------------------------------------------------- recordings


def encoded(container: str, subtype: str | None, channels: int = 1, rate_hz: int = SAMPLE_RATE_HZ) -> bytes:
    """Half a second of noise as a file of libsndfile's."""
    shape = (round(GOOD_SECONDS * rate_hz), channels)
    samples = 0.1 * np.random.default_rng(channels).standard_normal(shape)
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=container, subtype=subtype)
    content = bytearray(file.getvalue())
    for page in _ogg_pages(content) if container == "OGG" else ():
        content[page + 14 : page + 18] = bytes(4)  # a random number that names the stream
    return _with_ogg_checksums(content) if container == "OGG" else bytes(content)


_CONTAINERS = {
    "wav": [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("WAV", "GSM610"), ("WAVEX", "PCM_24")],
    "flac": [("FLAC", "PCM_16"), ("FLAC", "PCM_24")],
    "ogg": [("OGG", "OPUS"), ("OGG", "VORBIS")],
    "mp3": [("MP3", None)],
    "aiff": [("AIFF", "PCM_16")],
    "au": [("AU", "PCM_16")],
    "caf": [("CAF", "PCM_16"), ("CAF", "ALAC_16")],
    "w64": [("W64", "PCM_16")],
    "rf64": [("RF64", "PCM_16")],
    "sph": [("NIST", "PCM_16")],
}
_SUFFIXES = ("wav", "flac", "ogg", "mp3") * 4 + tuple(_CONTAINERS)  # those that users have, most often


@functools.cache
def _good_recordings(suffix: str) -> list[bytes]:
    mono = [encoded(container, subtype) for container, subtype in _CONTAINERS[suffix]]
    return [*mono, encoded(*_CONTAINERS[suffix][0], channels=2, rate_hz=48_000)]


def damaged_recording(rng: random.Random) -> Case:
    """A good file of some container, spoiled."""
    suffix = rng.choice(_SUFFIXES)
    content = damaged(rng, rng.choice(_good_recordings(suffix)))
    if b"OpusHead" in content and rng.random() < 0.5:
        content = _with_ogg_checksums(content)
    return Case("recording", f"case.{suffix}", content)


def _crc_table() -> list[int]:
    table = list(range(0, 2**32, 2**24))
    for _ in range(8):
        table = [(value << 1) ^ (0x04C1_1DB7 if value & 2**31 else 0) for value in table]
        table = [value & 0xFFFF_FFFF for value in table]
    return table


_CRC_TABLE = _crc_table()


def _ogg_pages(content: bytes | bytearray) -> Iterator[int]:
    """Where pages begin."""
    start = content.find(b"OggS")
    while start >= 0 and start + 27 <= len(content):
        yield start
        start = content.find(b"OggS", start + 27)


def _with_ogg_checksums(content: bytes | bytearray) -> bytes:
    changed = bytearray(content)
    for start in _ogg_pages(content):
        segments = changed[start + 27 : start + 27 + changed[start + 26]]
        end = start + 27 + len(segments) + sum(segments)
        changed[start + 22 : start + 26] = bytes(4)
        checksum = 0
        for byte in changed[start:end]:
            checksum = (checksum << 8 & 0xFFFF_FFFF) ^ _CRC_TABLE[checksum >> 24 ^ byte]
        changed[start + 22 : start + 26] = struct.pack("<I", checksum)
    return bytes(changed)


def random_wav(rng: random.Random) -> Case:
    """A RIFF header whose every field may lie, before samples that may be any bit pattern."""
    channels, bits = rng.choice((1, 1, 2, 3, 255, 1024, 0, 65_535)), rng.choice((16, 32, 64, 8, 24, 1, 0, 255))
    rate_hz = rng.choice((SAMPLE_RATE_HZ, 8_000, 44_100, 1, 7, 100, 999, 2**20, 2**31 - 1, 2**32 - 1, 0))
    code = rng.choice((1, 1, 3, 3, 6, 7, 17, 49, 85, 0xFFFE, rng.getrandbits(16)))
    bytes_a_frame = rng.choice((channels * bits // 8 % 2**16, rng.getrandbits(16), 0))
    rate = rng.choice((rate_hz * bytes_a_frame % 2**32, 0, 2**32 - 1))
    header = struct.pack("<HHIIHH", code, channels, rate_hz, rate, bytes_a_frame, bits)
    samples = _samples(rng, bits)
    chunks = [(b"fmt ", header), *([(b"LIST", rng.randbytes(9))] * rng.randrange(2)), (b"data", samples)]
    body = b"".join(
        name + struct.pack("<I", len(data) if rng.random() < 0.8 else rng.choice(_SIZES) % 2**32) + data
        for name, data in chunks
    )
    riff_bytes = len(body) + 4 if rng.random() < 0.7 else rng.choice(_SIZES) % 2**32
    return Case("recording", "case.wav", b"RIFF" + struct.pack("<I", riff_bytes) + b"WAVE" + body)


def _samples(rng: random.Random, bits: int) -> bytes:
    """Noise; where samples may be floating-point numbers also NaN, infinity, and the largest ones."""
    count = rng.choice((0, 1, 399, 400, 8_000))
    if bits not in (32, 64):
        return rng.randbytes(2 * count)
    extreme = rng.choice((np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, 1e300))
    samples = np.random.default_rng(count).uniform(-1, 1, count)
    samples[: rng.choice((0, 1, count))] = extreme
    with np.errstate(over="ignore"):
        return samples.astype(f"<f{bits // 8}").tobytes()


# ---------------------------------------------------------------- JSON lines

_STRANGE = (
    None, True, False, 0, -1, 1, 1.5, -0.0, 1e-9, 1e308, 10**30, 10**400, float("nan"), float("inf"), float("-inf"), "", " ", "0",
    "1e5", "\ud800", "\x00", "NaN", "é" * 3, "A" * 5_000, [], [1], {}, {"a": []}, [[[]]],
)  # fmt: skip
_STRANGE_LINES = ("[" * 100_000, '{"a":' * 50_000, '{"id":' + "[" * 900 + "]" * 900 + "}", "9" * 5_000, "-", "nul")
_STRANGE_PATHS = (
    "none.wav", ".", "..", "/", "/dev/null", "/dev/zero", "pipe", "good\x00.flac", "\ud83d.flac", "a/" * 3_000, "x" * 300, "~", "*",
    "\n", "http://127.0.0.1/a.wav", "case.jsonl", f"../recordings/{GOOD_RECORDING}", f"./{GOOD_RECORDING}",
)  # fmt: skip
_TEXTS = (
    "THE CAT SAT",
    "the dog",
    "",
    "é",
    "3 CATS",
    "\u2028",
    "'",
    "A" * 100_000,
    "\ud800",
    "\x00",
    "日本",
    "<s>",
    "A\nB",
)


def _spoiled_row(rng: random.Random, row: dict) -> object:
    """A JSON object with some values of other types or sizes, keys that are missing, or no object at all."""
    if rng.random() < 0.05:
        return rng.choice(_STRANGE)
    changed = dict(row)
    for _ in range(rng.choice((0, 0, 1, 2))):
        key = rng.choice(sorted(changed)) if changed else "id"
        if rng.random() < 0.2:
            changed.pop(key, None)
        else:
            changed[key] = rng.choice((*_STRANGE, *_SIZES))
    return changed


def _json_lines(rng: random.Random, rows: list[object]) -> bytes:
    """Rows as text in some encoding, now and then with damaged bytes, brackets without end, or a number without end."""
    lines = [json.dumps(row, ensure_ascii=rng.random() < 0.8) for row in rows]
    if rng.random() < 0.1:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(_STRANGE_LINES))
    text = rng.choice(("\n", "\n", "\n", "\r\n", "\r", "")).join(lines) + rng.choice(("\n", ""))
    encoding = rng.choice(("utf-8",) * 6 + ("utf-8-sig", "utf-16", "utf-32-le", "latin-1"))
    content = text.encode(encoding, errors="surrogatepass" if encoding.startswith("utf") else "replace")
    return damaged(rng, content) if rng.random() < 0.3 else content


def manifest(rng: random.Random) -> Case:
    """A few lines in NeMo's form that name the good recording or something stranger."""
    rows = []
    for number in range(rng.choice((1, 2, 5))):
        row = {"audio_filepath": GOOD_RECORDING, "text": "THE CAT SAT", "duration": GOOD_SECONDS, "offset": 0.0}
        row |= {"id": f"u{number}", "speaker": "19", "gender": "f", "age": 30}
        if rng.random() < 0.1:
            row["audio_filepath"] = rng.choice(_STRANGE_PATHS)
        if rng.random() < 0.1:
            row["text"] = rng.choice(_TEXTS)
        if rng.random() < 0.1:
            row["offset"], row["duration"] = rng.choice((0.1, 0.4999, 1e12, 1e-320)), rng.choice((0.2, 1e-320, 1e300))
        rows.append(_spoiled_row(rng, row))
    return Case("manifest", "case.jsonl", _json_lines(rng, rows))


def results(rng: random.Random) -> Case:
    """Lines of a results file, with or without its settings."""
    row = vars(UtteranceResult.scored("u0", "THE CAT", "A CAT", "CAT", audio_seconds=1.0, compute_seconds=0.1))
    row = json.loads(json.dumps(row, default=vars))
    rows: list[object] = [{"settings": {"beam_size": "1"} if rng.random() < 0.8 else rng.choice(_STRANGE)}]
    for number in range(rng.choice((0, 1, 3))):
        spoiled = _spoiled_row(rng, {**row, "id": f"u{number}"})
        if isinstance(spoiled, dict) and isinstance(spoiled.get("word_errors"), dict) and rng.random() < 0.2:
            spoiled["word_errors"] = _spoiled_row(rng, spoiled["word_errors"])
        rows.append(spoiled)
    return Case("results", "case.jsonl", _json_lines(rng, rows[rng.randrange(2) :] or rows))


# ---------------------------------------------------------------- LibriSpeech's transcripts


def transcripts(rng: random.Random) -> Case:
    """The .trans.txt of a chapter with one recording."""
    good = f"{SPEAKER}-{CHAPTER}-0000"
    names = (
        *[good] * 9,
        "",
        "..",
        "/",
        f"../{good}",
        "a\x00b",
        "x" * 300,
        good.encode("utf-16").decode("latin-1"),
        "\ufeff" + good,
    )
    lines = [rng.choice(names) + rng.choice(" \t\x0b") + rng.choice(_TEXTS) for _ in range(rng.choice((1, 2, 5)))]
    text = rng.choice(("\n", "\r\n", "\x1c", "")).join(lines)
    content = text.encode(rng.choice(("utf-8",) * 5 + ("utf-16", "utf-32")), errors="surrogatepass")
    return Case(
        "transcripts", f"{SPEAKER}-{CHAPTER}.trans.txt", damaged(rng, content) if rng.random() < 0.5 else content
    )


# ---------------------------------------------------------------- checkpoints

TINY_MODEL = {
    "conv_dim": [4] * 7, "encoder_target_ds_factor": 8, "num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8,
    "num_attn_heads": 2, "num_lact_heads": 2, "lact_fw_hidden_dim": 4,
}  # fmt: skip


@functools.cache
def _good_checkpoint() -> dict:
    torch.manual_seed(0)
    model = HybridASRForCTC(HybridASRConfig(**TINY_MODEL))
    config = {key: value for key, value in model.config.to_dict().items() if key in HybridASRConfig.__annotations__}
    return {
        "format": FORMAT,
        "config": config,
        "vocabulary": build_vocabulary(),
        "model": model.state_dict(),
        "notes": {},
    }


def checkpoint(rng: random.Random) -> Case:
    """best_model.pt with another vocabulary, another configuration, or damaged bytes."""
    content = dict(_good_checkpoint())
    if rng.random() < 0.7:
        content["vocabulary"] = _spoiled_vocabulary(rng, content["vocabulary"])
    if rng.random() < 0.2:
        content["config"] = _spoiled_row(rng, content["config"])
    if rng.random() < 0.1:
        content = _spoiled_row(rng, content)
    file = io.BytesIO()
    torch.save(content, file)
    return Case("checkpoint", "case.pt", damaged(rng, file.getvalue()) if rng.random() < 0.2 else file.getvalue())


def _spoiled_vocabulary(rng: random.Random, vocabulary: dict) -> object:
    if rng.random() < 0.1:
        return rng.choice(_STRANGE)
    changed = dict(vocabulary)
    for _ in range(rng.choice((0, 1, 2, 40))):
        token = rng.choice(list(changed)) if changed else "A"
        action = rng.randrange(4)
        if action == 0:
            changed[token] = rng.choice((-1, 0, 31, 32, 10**9, 10**30, True, 1.0, "1", None, [], float("nan")))
        elif action == 1:
            changed.pop(token, None)
        elif action == 2:
            new = rng.choice(("", " ", "é", "AB", "\ud800", "\x00", "\n", 3, None, True, 1.5, ("A",), "x" * 9_999))
            changed[new] = changed.pop(token, 0)
        else:
            other = rng.choice(list(changed)) if changed else token
            changed[token], changed[other] = changed.get(other, 0), changed.get(token, 0)
    return changed


# ---------------------------------------------------------------- all of them

_SHARES: dict[Callable[[random.Random], Case], int] = {
    damaged_recording: 45, random_wav: 15, manifest: 15, transcripts: 8, results: 9, checkpoint: 8,
}  # fmt: skip


def make_case(seed: int, number: int) -> Case:
    """Case ``number`` of a seed, whatever was made before it."""
    rng = random.Random(f"{seed} {number}")
    (make,) = rng.choices(list(_SHARES), weights=_SHARES.values())
    return make(rng)


def saved_cases(folder: Path) -> list[Case]:
    """Files of a folder with one folder a kind, as findings are written: a number or word, a dot, and the case's name."""
    paths = sorted(folder.glob("*/*"))
    if not paths:
        raise InputError(f"{folder} holds no findings: they lie in one folder a kind.")
    return [Case(path.parent.name, path.name.split(".", 1)[1], path.read_bytes()) for path in paths]
