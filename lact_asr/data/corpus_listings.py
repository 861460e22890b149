"""What a corpus lists: LibriSpeech's transcripts and NeMo's JSON-lines manifests become one `Entry` an utterance.

No recording is opened here; `corpora` does that and turns entries into cuts.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lact_asr.audio import AUDIO_EXTENSIONS, AudioHeader, TarMember
from lact_asr.errors import InputError, one_line

SUBSET_ALIASES = {"train-960": ("train-clean-100", "train-clean-360", "train-other-500")}
_MOST_SECONDS = 1e9  # thirty years: more is no recording's length
_MANIFEST_KEYS = frozenset({"audio_filepath", "text", "duration", "offset", "id", "speaker", "gender"})

BROKEN_LINE = "line that is not a manifest entry"  # kind of a `Problem` that no training goes on with


class Problem(NamedTuple):
    """Why one utterance or file is left out: its name, a sentence about it, and the kind under which it is counted."""

    name: str
    sentence: str
    kind: str


@dataclass
class Entry:
    """An utterance as a corpus lists it, before its recording's header is read (where the corpus does not note it)."""

    utterance_id: str
    audio_path: Path | TarMember
    text: str
    speaker: str | None = None
    gender: str | None = None
    start_seconds: float = 0.0
    duration_seconds: float | None = None
    custom: dict[str, Any] | None = None
    header: AudioHeader | None = None


class Listing(NamedTuple):
    """One subset: its name, the folder or file that lists it, its utterances, and what is listed but cannot be used."""

    subset: str
    source: Path
    entries: list[Entry]
    problems: list[Problem]


def subset_names(subsets: str | Sequence[str], data_dir: Path) -> list[str]:
    parts = subsets.split(",") if isinstance(subsets, str) else list(subsets or ())
    names = [name for part in parts if part.strip() for name in SUBSET_ALIASES.get(part.strip(), (part.strip(),))]
    if not names and data_dir.is_file():
        names = [data_dir.stem]
    if not names:
        raise InputError("no subset was named: give at least one, such as train-clean-100")
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"subset {name!r} is named {count} times: name it once")
    return names


def librispeech_folders(data_dir: Path, names: list[str]) -> list[Path]:
    if not data_dir.is_dir():
        raise InputError(f"{data_dir} is a file: for --dataset_type librispeech give the folder that holds the subsets")
    folders = [find_librispeech_folder(data_dir, name) for name in names]
    if None in folders:
        known = sorted(
            {
                path.name
                for root in _librispeech_roots(data_dir)
                if root.is_dir()
                for path in root.iterdir()
                if path.is_dir()
            }
            - {"LibriSpeech"}
        )
        unknown = names[folders.index(None)]
        _suggest_what_was_meant(data_dir, unknown)
        raise InputError(f"no subset {unknown!r} in {data_dir}: there {_listing(known)}")
    return folders


def _suggest_what_was_meant(data_dir: Path, subset: str) -> None:
    """Raise `InputError` where a folder without a subset's folder is recognised as something else."""
    if (data_dir / f"{subset}.jsonl").is_file():
        raise InputError(
            f"no subset folder {subset!r} in {data_dir}, but a manifest {subset}.jsonl: give --dataset_type manifest"
        )
    if next(data_dir.glob("*/*/*.trans.txt"), None) is not None:
        raise InputError(
            f"no subset {subset!r} in {data_dir}, which looks like a subset itself: give its parent as --data_dir, "
            f"{data_dir.resolve().parent}, and {data_dir.resolve().name} as the subset"
        )


def find_librispeech_folder(data_dir: Path, name: str) -> Path | None:
    """A subset's folder in `data_dir` or its folder LibriSpeech, None if there is none."""
    return next((root / name for root in _librispeech_roots(data_dir) if (root / name).is_dir()), None)


def _librispeech_roots(data_dir: Path) -> tuple[Path, Path]:
    return data_dir, data_dir / "LibriSpeech"


def manifest_paths(data_dir: Path, names: list[str]) -> list[Path]:
    if data_dir.is_file():
        if names != [data_dir.stem]:
            raise InputError(
                f"{data_dir} is one manifest, so its only subset is {data_dir.stem!r}: give its folder for others"
            )
        return [data_dir]
    paths = []
    for name in names:
        candidates = [data_dir / f"{name}.jsonl", data_dir / name, Path(name)]
        path = next((path for path in candidates if path.suffix == ".jsonl" and path.is_file()), None)
        if path is None:
            known = sorted(path.stem for path in data_dir.glob("*.jsonl"))
            raise InputError(f"no manifest {name}.jsonl in {data_dir}: there {_listing(known)}")
        paths.append(path)
    return paths


def _listing(names: list[str]) -> str:
    return f"is {', '.join(names)}" if names else "is none"


def librispeech_entries(folder: Path, problems: list[Problem]) -> Iterator[Entry]:
    """Utterances of SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt, sorted by path."""
    genders = _librispeech_genders(folder.parent / "SPEAKERS.TXT")
    for chapter in sorted(path for path in folder.glob("*/*") if path.is_dir()):
        speaker = chapter.parent.name
        audio = {path.stem: path for path in sorted(chapter.iterdir()) if path.suffix.lower() in AUDIO_EXTENSIONS}
        transcripts = chapter / f"{speaker}-{chapter.name}.trans.txt"
        try:
            lines = transcripts.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            sentence = f"no transcript file {transcripts} for the {len(audio)} recordings beside it"
            problems.append(Problem(transcripts.name, sentence, "missing transcript file"))
            continue
        except (OSError, UnicodeDecodeError) as error:
            problems.append(
                Problem(transcripts.name, f"{transcripts} cannot be read: {error}", "unreadable transcript file")
            )
            continue
        listed = set()
        for line in filter(str.strip, lines):
            utterance_id, text = (*line.split(maxsplit=1), "")[:2]
            listed.add(utterance_id)
            path = audio.get(utterance_id, chapter / f"{utterance_id}.flac")
            yield Entry(utterance_id, path, text, speaker, genders.get(speaker))
        for stem in sorted(audio.keys() - listed):
            problems.append(
                Problem(stem, f"{transcripts} has no line for {audio[stem].name}", "missing transcript line")
            )


def _librispeech_genders(path: Path) -> dict[str, str]:
    """Speaker -> "f" or "m" from SPEAKERS.TXT (`;` begins a comment; ID | SEX | SUBSET | MINUTES | NAME)."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if not line.startswith(";")]
    return {row[0]: row[1].lower() for row in rows if len(row) > 1}


def manifest_entries(manifest: Path, problems: list[Problem]) -> Iterator[Entry]:
    """Utterances of a manifest in NeMo's form, one JSON object a line; paths are relative to the manifest."""
    try:
        lines = manifest.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"manifest {manifest} cannot be read as UTF-8 text: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row, problem = json.loads(line), None
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets in brackets, too
            problem = BROKEN_LINE, f"is not JSON ({error}): a manifest has one JSON object a line"
        problem = problem or _manifest_row_problem(row)
        if problem is None and "\\ud" in line.lower() and not _is_unicode(row):
            problem = ("text that is not Unicode", "has half of a surrogate pair, which is no character")
        if problem:
            kind, what = problem
            problems.append(Problem(f"{manifest.name}:{number}", one_line(f"{manifest}:{number} {what}"), kind))
        else:
            yield _manifest_entry(manifest, row)


def manifest_text(line: str, place: str) -> str:
    """The text of a line, where nothing else of it is needed.

    Raises:
        InputError: there is none; the message begins with the place.
    """
    try:
        text = json.loads(line)["text"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise InputError(f'{place} is not a JSON object with a "text"') from None
    if not isinstance(text, str):
        raise InputError(f'{place} has a "text" that is not a string')
    return text


def _is_unicode(row: Any) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _manifest_row_problem(row: Any) -> tuple[str, str] | None:
    if not isinstance(row, dict) or not isinstance(row.get("audio_filepath"), str):
        return BROKEN_LINE, 'is not a manifest line: it must be a JSON object with "audio_filepath" and "text"'
    if not isinstance(row.get("text"), str):
        return "missing transcript", f'has no "text" for {row["audio_filepath"]}'
    for key, minimum in (("offset", 0.0), ("duration", math.ulp(0.0))):
        value = row.get(key)
        valid = isinstance(value, (int, float)) and not isinstance(value, bool) and minimum <= value <= _MOST_SECONDS
        if value is not None and not valid:
            return f"impossible {key}", f'has "{key}": {value!r}, which is not a number of seconds'
    return None


def _manifest_entry(manifest: Path, row: dict[str, Any]) -> Entry:
    offset = row.get("offset")
    default_id = os.path.splitext(row["audio_filepath"])[0] + (f"@{offset:g}" if offset else "")
    return Entry(
        utterance_id=default_id if row.get("id") is None else str(row["id"]),
        audio_path=manifest.parent / row["audio_filepath"],
        text=row["text"],
        speaker=None if row.get("speaker") is None else str(row["speaker"]),
        gender=row.get("gender"),
        start_seconds=float(offset or 0.0),
        duration_seconds=row.get("duration"),
        custom={key: value for key, value in row.items() if key not in _MANIFEST_KEYS} or None,
    )
