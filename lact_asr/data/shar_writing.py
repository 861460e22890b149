"""Writes Shar folders (`lact_asr.data.shar`): shard by shard in several processes, each shard whole or not there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import soundfile
from lhotse import MonoCut, Recording
from lhotse.audio import AudioSource
from lhotse.serialization import SequentialJsonlWriter
from lhotse.shar import TarWriter
from lhotse.utils import fastcopy
from tqdm import tqdm

from lact_asr.atomic_files import write_json
from lact_asr.audio import SAMPLE_RATE_HZ, TarMember
from lact_asr.data.corpora import Corpus, read_cut
from lact_asr.data.corpus_listings import Problem
from lact_asr.data.shar import scan_tar, shard_file
from lact_asr.errors import InputError

# How soundfile calls container and codec, and how a file of the format begins.
_FORMATS = {"flac": ("FLAC", "PCM_16", b"fLaC"), "opus": ("OGG", "OPUS", b"OggS")}
_SETTINGS = "settings.json"
_LEFT_OUT = "left_out"  # a file of problems for each shard, which says that the shard is done


def write_shar(
    corpus: Corpus, target: Path, audio_format: str, shard_size: int, num_workers: int, keep_order: bool = False
) -> list[Problem]:
    """Write a corpus as the Shar folder `target`, and ``TARGET.json`` beside it, which says what is in it and what is not.

    Args:
        corpus: of `lact_asr.data.corpora.load_corpus`.
        target: must not exist; its parents are made. Until it is complete it is called ``.NAME.part``; shards that are there
            already are kept.
        audio_format: "flac" (16 bits) or "opus".
        shard_size: recordings in a tar file.
        num_workers: processes; the files do not depend on it.
        keep_order: shards in the corpus's order; without it, each is a random sample.

    Returns:
        What was left out because it cannot be decoded.

    Raises:
        InputError: `target` is there, cannot be written, or was begun from another corpus or with other settings.
    """
    if target.exists():
        raise InputError(f"{target} exists already; remove it, or choose another --output_dir")
    cuts = list(corpus.cuts)
    if not keep_order:
        random.Random(0).shuffle(cuts)
    shards = {
        f"{start // shard_size:06d}": cuts[start : start + shard_size] for start in range(0, len(cuts), shard_size)
    }
    settings = {"corpus": corpus.name, "audio_format": audio_format, "shard_size": shard_size, "cuts": _digest(cuts)}
    work = target.with_name(f".{target.name}.part")
    try:
        _start_or_resume(work, settings)
        _write_shards(work, shards, audio_format, num_workers, target.name)
        left_out = [
            Problem(*row)
            for number in shards
            for row in json.loads(_left_out_of(work, number).read_text(encoding="utf-8"))
        ]
        _write_summary(target.with_name(f"{target.name}.json"), corpus, left_out, audio_format)
        shutil.rmtree(work / _LEFT_OUT)
        (work / _SETTINGS).unlink()
        os.replace(work, target)
    except OSError as error:
        raise InputError(
            f"{target} cannot be written: {error.strerror or error}; called again, the command goes on where it stopped"
        ) from None
    return left_out


def _digest(cuts: list[MonoCut]) -> str:
    """Of ids, transcripts and lengths, in order."""
    lines = "".join(f"{cut.id}\t{cut.duration}\t{cut.supervisions[0].text}\n" for cut in cuts)
    return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()


def _start_or_resume(work: Path, settings: dict) -> None:
    path = work / _SETTINGS
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != settings:
            raise InputError(f"{work} was begun from another corpus or with other settings: remove it to start again")
        for unfinished in work.glob(".shard-*"):
            shutil.rmtree(unfinished)
    else:
        work.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
    (work / _LEFT_OUT).mkdir(exist_ok=True)


def _write_shards(work: Path, shards: dict[str, list[MonoCut]], audio_format: str, num_workers: int, name: str) -> None:
    todo = {number: cuts for number, cuts in shards.items() if not _left_out_of(work, number).exists()}
    total, left = (sum(map(len, some.values())) for some in (shards, todo))
    with (
        tqdm(total=total, initial=total - left, desc=name, unit=" utterances", mininterval=1.0) as bar,
        ProcessPoolExecutor(num_workers) as pool,
    ):
        tasks = {pool.submit(write_shard, work, number, cuts, audio_format): cuts for number, cuts in todo.items()}
        try:
            for task in as_completed(tasks):
                task.result()
                bar.update(len(tasks[task]))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def write_shard(folder: Path, number: str, cuts: list[MonoCut], audio_format: str) -> None:
    """Write one shard, whole or not at all, and last the file of what is left out because it cannot be decoded."""
    problems: list[Problem] = []
    with tempfile.TemporaryDirectory(prefix=".shard-", dir=folder) as name:
        work = Path(name)
        tar = shard_file(work, "recording", number)
        with (
            TarWriter(tar, shard_size=None) as recordings,
            SequentialJsonlWriter(shard_file(work, "cuts", number)) as manifest,
        ):
            for cut in cuts:
                try:
                    content, num_samples = _encode(cut, audio_format)
                except InputError as error:
                    problems.append(Problem(cut.id, str(error), "unreadable audio file"))
                    continue
                recording = Recording(
                    cut.id, [AudioSource("shar", [0], "")], SAMPLE_RATE_HZ, num_samples, num_samples / SAMPLE_RATE_HZ
                )
                recordings.write(f"{cut.id}.{audio_format}", io.BytesIO(content))
                recordings.write(f"{cut.id}.json", io.BytesIO(json.dumps(recording.to_dict()).encode()), count=False)
                manifest.write(_shar_cut(cut, recording))
        if len(problems) < len(cuts):
            with SequentialJsonlWriter(shard_file(work, "tar_place", number)) as places:
                for utterance_id, place in scan_tar(tar).items():
                    places.write({"cut_id": utterance_id, "tar_place": place})
            for field in ("recording", "tar_place", "cuts"):
                os.replace(shard_file(work, field, number), shard_file(folder, field, number))
    write_json(_left_out_of(folder, number), problems)


def _shar_cut(cut: MonoCut, recording: Recording) -> MonoCut:
    """A cut of all of a recording, with the supervision of another."""
    supervision = fastcopy(cut.supervisions[0], recording_id=recording.id, start=0.0, duration=recording.duration)
    return MonoCut(cut.id, 0.0, recording.duration, 0, supervisions=[supervision], recording=recording)


def _encode(cut: MonoCut, audio_format: str) -> tuple[bytes, int]:
    """The recording of a cut in a format, and its samples at 16 kHz.

    Raises:
        InputError: it cannot be decoded.
    """
    samples = read_cut(cut)
    container, codec, magic = _FORMATS[audio_format]
    recording = cut.recording
    if cut.duration == recording.duration and recording.sampling_rate == SAMPLE_RATE_HZ and recording.num_channels == 1:
        source = recording.sources[0].source
        content = source.read_bytes() if isinstance(source, TarMember) else Path(source).read_bytes()
        if content.startswith(magic) and (audio_format == "flac" or b"OpusHead" in content[:64]):
            return content, len(samples)
    file = io.BytesIO()
    # Scaled as soundfile scales when it reads, so that 16-bit audio comes back as it was.
    integers = np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)
    soundfile.write(file, integers, SAMPLE_RATE_HZ, format=container, subtype=codec)
    return file.getvalue(), len(samples)


def _left_out_of(folder: Path, number: str) -> Path:
    return folder / _LEFT_OUT / f"{number}.json"


def _write_summary(path: Path, corpus: Corpus, left_out: list[Problem], audio_format: str) -> None:
    problems = [*corpus.problems, *left_out]
    content = {
        "corpus": corpus.name,
        "audio_format": audio_format,
        "utterances": len(corpus.cuts) - len(left_out),
        "left_out": [{"name": name, "kind": kind, "reason": sentence} for name, sentence, kind in problems],
    }
    write_json(path, content)
