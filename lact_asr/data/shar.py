"""Shar folders, lhotse's format for storage that dislikes small files: a thousand recordings share one tar file.

A subset is a folder of shards: ``cuts.000000.jsonl.gz`` and ``recording.000000.tar``, which `lhotse.CutSet.from_shar` reads,
too, and ``tar_place.000000.jsonl.gz``, which says where in the tar file each recording is. By these places recordings are
read one by one, so that an epoch is drawn, resumed and shared by processes as one of single files is;
`lact_asr.data.batch_plan` draws the utterances of a shard near each other. Where places are missing, because lhotse alone
wrote the folder, the tar files are scanned when the corpus is loaded.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from lhotse import MonoCut
from lhotse.serialization import deserialize_item, load_jsonl

from lact_asr.audio import AudioHeader, TarMember
from lact_asr.data.corpus_listings import Entry, Problem
from lact_asr.errors import InputError


def shard_file(folder: Path, field: str, number: str) -> Path:
    """The file of a shard that holds one of the fields ``cuts``, ``recording``, ``tar_place``."""
    return folder / f"{field}.{number}.{'tar' if field == 'recording' else 'jsonl.gz'}"


def shar_folders(data_dir: Path, names: list[str]) -> list[Path]:
    """The folder of each subset.

    Raises:
        InputError: one is not there, or not a Shar folder.
    """
    for name in names:
        if not _shard_numbers(data_dir / name):
            known = sorted(path.name for path in data_dir.glob("*") if _shard_numbers(path))
            there = f"there is {', '.join(known)}" if known else "there is none"
            raise InputError(f"no Shar folder {name!r} in {data_dir}: {there}")
    return [data_dir / name for name in names]


def _shard_numbers(folder: Path) -> list[str]:
    return sorted(path.name.split(".")[1] for path in folder.glob("cuts.*.jsonl.gz"))


def shar_entries(folder: Path, problems: list[Problem]) -> Iterator[Entry]:
    """Utterances of a folder, shard by shard; no recording is opened, lengths are those that the shards note."""
    for number in _shard_numbers(folder):
        tar = shard_file(folder, "recording", number)
        try:
            places = _tar_places(folder, number)
            cuts = [deserialize_item(row) for row in load_jsonl(shard_file(folder, "cuts", number))]
        except (OSError, EOFError, ValueError, tarfile.TarError) as error:
            problems.append(Problem(tar.name, f"the shard {tar} cannot be read: {error}", "unreadable shard"))
            continue
        for cut in cuts:
            if cut.id not in places:
                problems.append(
                    Problem(cut.id, f"the shard {tar} holds no recording of {cut.id}", "missing audio file")
                )
            elif not cut.supervisions or cut.supervisions[0].text is None:
                problems.append(Problem(cut.id, f"the shard {tar} has no text for {cut.id}", "missing transcript"))
            else:
                yield _entry(cut, TarMember(tar, cut.id, *places[cut.id]))


def _tar_places(folder: Path, number: str) -> dict[str, tuple[int, int]]:
    """Utterance id -> offset and number of bytes of its recording in the shard's tar file."""
    noted = shard_file(folder, "tar_place", number)
    if noted.is_file():
        return {row["cut_id"]: tuple(row["tar_place"]) for row in load_jsonl(noted)}
    return scan_tar(shard_file(folder, "recording", number))


def scan_tar(path: Path) -> dict[str, tuple[int, int]]:
    """Places in an uncompressed tar file of lhotse's, by reading the header of every member.

    Raises:
        OSError, tarfile.TarError: it cannot be read.
    """
    with tarfile.open(path, "r:") as tar:
        audio = (member for member in tar if not member.name.endswith((".json", ".nodata", ".nometa")))
        # As lhotse names members, "ID.flac", whatever an id looks like: paths in it ("./a", "b//c") are not put in order.
        return {os.path.splitext(member.name)[0]: (member.offset_data, member.size) for member in audio}


def _entry(cut: MonoCut, member: TarMember) -> Entry:
    supervision, recording = cut.supervisions[0], cut.recording
    return Entry(
        cut.id,
        member,
        supervision.text,
        supervision.speaker,
        supervision.gender,
        custom=supervision.custom,
        header=AudioHeader(recording.num_samples, recording.sampling_rate, recording.num_channels),
    )
