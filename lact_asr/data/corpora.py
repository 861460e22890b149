"""Speech corpora as lhotse cuts: LibriSpeech folders, JSON-lines manifests and Shar folders.

A corpus is one cut an utterance, each with one supervision that holds the normalised transcript and what is known of
the speaker. Whatever cannot be used (a missing file, a line without transcript …) becomes a named and counted
`Problem` and the rest goes on; only what leaves nothing to work on is an `InputError`.

Only headers are read here, with soundfile in several threads; lhotse's own readers are not used, because some of them
need torchaudio.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from tqdm import tqdm

from lact_asr.audio import MIN_SAMPLES, SAMPLE_RATE_HZ, AudioHeader, TarMember, read_audio, read_audio_header
from lact_asr.data.corpus_listings import (
    BROKEN_LINE,
    Entry,
    Listing,
    Problem,
    librispeech_entries,
    librispeech_folders,
    manifest_entries,
    manifest_paths,
    subset_names,
)
from lact_asr.data.dataset_types import DATASET_TYPES
from lact_asr.data.shar import shar_entries, shar_folders
from lact_asr.errors import InputError, first_names, one_line
from lact_asr.text import normalise_text, unspellable_characters

_HEADER_THREADS = 16
_PATHS_PER_TASK = 64
PROGRESS_BAR_FROM = 5_000
_DURATION_SLACK_SECONDS = 0.1


@dataclass
class Corpus:
    """Utterances that can be used, and what could not be.

    Attributes:
        name: subsets and folder, for reports.
        cuts: one lhotse cut an utterance (cut id = utterance id), its only supervision with normalised `text`,
            `speaker`, `gender` and the manifest's other fields in `custom`.
        problems: what was left out.
        weights: how often an epoch of training has each cut; None: once.
    """

    name: str
    cuts: CutSet
    problems: list[Problem] = field(default_factory=list)
    weights: list[float] | None = None

    @property
    def total_hours(self) -> float:
        """Hours of speech in the usable utterances."""
        return sum(cut.duration for cut in self.cuts) / 3600

    @property
    def texts(self) -> list[str]:
        """Normalised transcripts in the order of the cuts."""
        return [transcript(cut) for cut in self.cuts]

    def report(self, max_names: int = 3) -> str:
        """Counts, hours and, by kind, the problems with the first few names; one line each."""
        lines = [
            f"{self.name}: {len(self.cuts):,} utterances, {self.total_hours:.2f} h, {len(self.problems):,} left out"
        ]
        by_kind: dict[str, list[Problem]] = defaultdict(list)
        for problem in self.problems:
            by_kind[problem.kind].append(problem)
        for kind, problems in sorted(by_kind.items(), key=lambda item: -len(item[1])):
            names = one_line(first_names([problem.name for problem in problems], max_names))
            lines.append(f"  {len(problems):,} × {kind}: {names}")
        return "\n".join(lines)


def list_corpus(data_dir: str | os.PathLike, subsets: str | Sequence[str], dataset_type: str) -> list[Listing]:
    """What some subsets of a corpus list; arguments and errors are those of `load_corpus`."""
    if dataset_type not in DATASET_TYPES:
        raise InputError(f"unknown dataset type {dataset_type!r}: it must be one of {', '.join(DATASET_TYPES)}")
    data_dir = Path(data_dir)
    if not data_dir.exists():
        raise InputError(f"no such data folder: {data_dir}")
    find_sources, read_entries = {
        "librispeech": (librispeech_folders, librispeech_entries),
        "manifest": (manifest_paths, manifest_entries),
        "shar": (shar_folders, shar_entries),
    }[dataset_type]
    names = subset_names(subsets, data_dir)
    listings = []
    for name, source in zip(names, find_sources(data_dir, names), strict=True):
        problems: list[Problem] = []
        listings.append(Listing(name, source, list(read_entries(source, problems)), problems))
    return listings


def load_corpus(
    data_dir: str | os.PathLike,
    subsets: str | Sequence[str],
    dataset_type: str = "librispeech",
    show_progress: bool = True,
) -> Corpus:
    """List the utterances of some subsets of a corpus and read the headers of their recordings.

    Args:
        data_dir: LibriSpeech: the folder that holds the subsets, or its parent with a folder `LibriSpeech`.
            Manifests: the folder of `SUBSET.jsonl`, or one `.jsonl` file, in which case `subsets` may be empty or its
            stem. Shar: the folder that holds the subsets' folders.
        subsets: names, comma separated or as a sequence; `train-960` is the three LibriSpeech training subsets; for
            manifests also paths of `.jsonl` files.
        dataset_type: one of `DATASET_TYPES`.
        show_progress: progress bar where there are many files.

    Raises:
        InputError: unknown type, folder or subset, a subset named twice, a manifest line that is not a JSON object,
            or a subset without usable utterances.
    """
    listings = list_corpus(data_dir, subsets, dataset_type)
    corpus = Corpus(f"{','.join(listing.subset for listing in listings)} ({data_dir})", CutSet.from_cuts([]))
    cuts: list[MonoCut] = []
    seen_ids: set[str] = set()
    for listing in listings:
        problems = list(listing.problems)
        if broken := [problem for problem in problems if problem.kind == BROKEN_LINE]:
            raise InputError(broken[0].sentence)
        entries = [_with_unique_id(entry, listing.subset, seen_ids) for entry in listing.entries]
        subset_cuts = make_cuts(entries, problems, show_progress)
        if not subset_cuts:
            first = f"; the first of {len(problems):,} problems: {problems[0].sentence}" if problems else ""
            raise InputError(f"subset {listing.subset!r} has no usable utterances ({listing.source}){first}")
        cuts += subset_cuts
        corpus.problems += problems
    corpus.cuts = CutSet.from_cuts(cuts)
    return corpus


def transcript(cut: MonoCut) -> str:
    """The normalised transcript of a corpus cut."""
    return cut.supervisions[0].text


def read_cut(cut: MonoCut) -> np.ndarray:
    """The recording of a cut, float32 [samples], mono, 16 kHz; raises as `lact_asr.audio.read_audio`."""
    duration = None if cut.end >= cut.recording.duration else cut.duration
    return read_audio(cut.recording.sources[0].source, cut.start, duration)


def shard_of(cut: MonoCut) -> Path | None:
    """The file that the recording of a cut shares with others, None for a recording in a file of its own."""
    source = cut.recording.sources[0].source
    return source.tar if isinstance(source, TarMember) else None


def cut_samples(cut: MonoCut) -> int:
    """Samples at 16 kHz that reading a cut gives."""
    return round(cut.duration * SAMPLE_RATE_HZ)


def _with_unique_id(entry: Entry, subset: str, seen_ids: set[str]) -> Entry:
    """Keep ids as the corpus gives them, unless one was there before: then SUBSET/id, then SUBSET/id#2 and so on."""
    base = entry.utterance_id if entry.utterance_id not in seen_ids else f"{Path(subset).stem}/{entry.utterance_id}"
    unique, number = base, 1
    while unique in seen_ids:
        number += 1
        unique = f"{base}#{number}"
    seen_ids.add(unique)
    entry.utterance_id = unique
    return entry


def make_cuts(entries: list[Entry], problems: list[Problem], show_progress: bool = True) -> list[MonoCut]:
    """Read headers and turn entries into cuts; those whose transcript or recording cannot be used go to `problems`."""
    spelt = []
    for entry in entries:
        problem = _transcript_problem(entry)
        if problem:
            problems.append(problem)
        else:
            spelt.append(entry)
    headers = _read_headers({entry.audio_path for entry in spelt if entry.header is None}, show_progress)
    cuts = []
    for entry in spelt:
        made = _make_cut(entry, entry.header or headers[entry.audio_path])
        if isinstance(made, Problem):
            problems.append(made)
        else:
            cuts.append(made)
    return cuts


def _transcript_problem(entry: Entry) -> Problem | None:
    name = entry.utterance_id
    unspellable = unspellable_characters(entry.text)
    if unspellable:
        sentence = f"the transcript of {name} has {unspellable!r}, to be written out in English letters: {entry.text!r}"
        return Problem(name, one_line(sentence), "transcript with digits, symbols or foreign letters")
    if not normalise_text(entry.text):
        return Problem(name, one_line(f"the transcript of {name} has no words: {entry.text!r}"), "empty transcript")
    return None


def _read_headers(paths: Iterable[Path], show_progress: bool) -> dict[Path, AudioHeader | str]:
    """Headers of many recordings, or the sentence that says why one cannot be read."""

    def read_some(some: list[Path]) -> list[tuple[Path, AudioHeader | str]]:
        return [(path, _header_or_sentence(path)) for path in some]

    paths = sorted(paths)
    tasks = [paths[start : start + _PATHS_PER_TASK] for start in range(0, len(paths), _PATHS_PER_TASK)]
    headers: dict[Path, AudioHeader | str] = {}
    hidden = not show_progress or len(paths) < PROGRESS_BAR_FROM
    with (
        tqdm(total=len(paths), desc="reading audio headers", unit=" files", disable=hidden, leave=False) as bar,
        ThreadPoolExecutor(_HEADER_THREADS) as pool,
    ):
        for results in pool.map(read_some, tasks):
            headers.update(results)
            bar.update(len(results))
    return headers


def _header_or_sentence(path: Path) -> AudioHeader | str:
    try:
        return read_audio_header(path)
    except InputError as error:
        return str(error)


def _make_cut(entry: Entry, header: AudioHeader | str) -> MonoCut | Problem:
    name = entry.utterance_id
    if isinstance(header, str):
        kind = "unreadable audio file" if os.path.exists(entry.audio_path) else "missing audio file"
        return Problem(name, header, kind)
    available = header.duration_seconds - entry.start_seconds
    duration = available if entry.duration_seconds is None else entry.duration_seconds
    if duration > available + _DURATION_SLACK_SECONDS or available <= 0:
        asked = f"{duration:.2f} s from {entry.start_seconds:.2f} s"
        sentence = f"{entry.audio_path} has {header.duration_seconds:.2f} s, the manifest asks for {asked}"
        return Problem(name, sentence, "recording shorter than the manifest says")
    # Manifests round their durations; the file knows better where the utterance is the whole file.
    if entry.start_seconds == 0 and abs(duration - available) < _DURATION_SLACK_SECONDS:
        duration = available
    duration = min(duration, available)
    if duration * SAMPLE_RATE_HZ < MIN_SAMPLES:
        return Problem(
            name,
            f"{entry.audio_path} is too short: {duration:.4f} s, one frame needs 0.025 s",
            "shorter than one frame",
        )
    channels, path = list(range(header.num_channels)), entry.audio_path
    source = (
        AudioSource("shar", channels, path) if isinstance(path, TarMember) else AudioSource("file", channels, str(path))
    )
    recording = Recording(name, [source], header.sample_rate_hz, header.num_frames, header.duration_seconds)
    supervision = SupervisionSegment(
        name,
        name,
        0.0,
        duration,
        text=normalise_text(entry.text),
        speaker=entry.speaker,
        gender=entry.gender,
        custom=entry.custom,
    )
    return MonoCut(name, entry.start_seconds, duration, 0, supervisions=[supervision], recording=recording)
