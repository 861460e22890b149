"""What `lact_asr.data.check_corpus` looks for: one sentence for each thing that is wrong with a subset of a corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lhotse import MonoCut
from tqdm import tqdm

from lact_asr.audio import MIN_SAMPLES, SAMPLE_RATE_HZ
from lact_asr.data.corpora import make_cuts, read_cut, transcript
from lact_asr.data.corpus_listings import Listing, Problem
from lact_asr.data.ctc_fit import find_unfit
from lact_asr.errors import InputError

# Read English has about 15 characters a second; beyond these bounds a transcript hardly belongs to its recording.
CHARACTERS_PER_SECOND = (2.0, 30.0)
_CUTS_PER_TASK = 16


class Finding(NamedTuple):
    """As `Problem`; a warning is of something that training can use."""

    name: str
    sentence: str
    kind: str
    is_error: bool = True


@dataclass
class CheckedSubset:
    """What was found.

    Attributes:
        name: of the subset.
        ids: of all utterances that are listed, as they are listed.
        characters: how often each character is in the transcripts as they are written, before normalisation.
        durations_seconds: of utterances whose recording can be read.
        problems: what is wrong.
    """

    name: str
    ids: list[str]
    characters: Counter[str]
    durations_seconds: list[float] = field(default_factory=list)
    problems: list[Finding] = field(default_factory=list)


def check_subsets(
    listings: list[Listing], tokenizer: Any, samples_per_frame: int, num_workers: int
) -> list[CheckedSubset]:
    """Read all recordings and transcripts of some subsets.

    Args:
        listings: of `lact_asr.data.corpora.list_corpus`.
        tokenizer: the CTC tokenizer of the model that is to be trained.
        samples_per_frame: of that model.
        num_workers: processes that decode; the result does not depend on it.
    """
    checked = [_check_subset(listing, tokenizer, samples_per_frame, num_workers) for listing in listings]
    uses = Counter(name for subset in checked for name in subset.ids)
    for subset in checked:
        for name in dict.fromkeys(name for name in subset.ids if uses[name] > 1):
            subset.problems.append(Finding(name, f"the id {name} is used {uses[name]} times", "id used twice"))
    return checked


def _check_subset(listing: Listing, tokenizer: Any, samples_per_frame: int, num_workers: int) -> CheckedSubset:
    checked = CheckedSubset(
        listing.subset,
        [entry.utterance_id for entry in listing.entries],
        Counter(character for entry in listing.entries for character in entry.text),
    )
    problems: list[Problem | None] = list(listing.problems)
    readable: list[MonoCut] = []
    for cut, sentence, is_silent in _decoded(make_cuts(listing.entries, problems), listing.subset, num_workers):
        if sentence is not None:
            problems.append(Problem(cut.id, sentence, "unreadable audio file"))
        elif is_silent:
            problems.append(Problem(cut.id, f"the recording of {cut.id} is silent", "silent recording"))
        else:
            readable.append(cut)
    problems += find_unfit(readable, lambda samples: (samples - MIN_SAMPLES) // samples_per_frame + 1, tokenizer)
    checked.durations_seconds = [cut.duration for cut in readable]
    checked.problems = [Finding(*problem) for problem in problems if problem is not None]
    checked.problems += [warning for cut in readable for warning in _warnings(cut)]
    return checked


def _decoded(cuts: list[MonoCut], name: str, num_workers: int) -> Iterator[tuple[MonoCut, str | None, bool]]:
    """Each cut with the sentence that says why it cannot be read, if so, and whether it is silent."""
    bar = tqdm(total=len(cuts), desc=name, unit=" utterances", mininterval=1.0)
    tasks = [cuts[start : start + _CUTS_PER_TASK] for start in range(0, len(cuts), _CUTS_PER_TASK)]
    with bar:
        for task, outcomes in zip(tasks, _outcomes(tasks, num_workers), strict=True):
            bar.update(len(task))
            yield from ((cut, *outcome) for cut, outcome in zip(task, outcomes, strict=True))


def _outcomes(tasks: list[list[MonoCut]], num_workers: int) -> Iterator[list[tuple[str | None, bool]]]:
    """What `_decode_some` gives for each task, in their order, also where a recording kills the process that decodes it."""
    while tasks:
        num_done = 0
        try:
            with ProcessPoolExecutor(num_workers) as pool:
                for outcomes in pool.map(_decode_some, tasks):
                    num_done += 1
                    yield outcomes
        except BrokenProcessPool:  # by this task or by one that ran beside it, which is found in the same way next
            yield [_decode_apart(cut) for cut in tasks[num_done]]
            num_done += 1
        tasks = tasks[num_done:]


def _decode_apart(cut: MonoCut) -> tuple[str | None, bool]:
    """As `_decode`, in a process of its own."""
    try:
        with ProcessPoolExecutor(1) as pool:
            return pool.submit(_decode, cut).result()
    except BrokenProcessPool:
        source = cut.recording.sources[0].source
        return (
            f"the recording of {cut.id}, {source}, kills the process that decodes it, as do some that are damaged",
            False,
        )


def _decode_some(cuts: list[MonoCut]) -> list[tuple[str | None, bool]]:
    return [_decode(cut) for cut in cuts]


def _decode(cut: MonoCut) -> tuple[str | None, bool]:
    try:
        return None, not read_cut(cut).any()
    except InputError as error:
        return str(error), False


def _warnings(cut: MonoCut) -> Iterator[Finding]:
    """What is odd about an utterance that training can use."""
    if cut.recording.sampling_rate != SAMPLE_RATE_HZ:
        sentence = f"{cut.id} has {cut.recording.sampling_rate:,} Hz and is resampled each time that it is read"
        yield Finding(cut.id, sentence, "another sampling rate than 16 kHz", is_error=False)
    if cut.recording.num_channels > 1:
        sentence = f"{cut.id} has {cut.recording.num_channels} channels, which are averaged"
        yield Finding(cut.id, sentence, "several channels", is_error=False)
    low, high = CHARACTERS_PER_SECOND
    rate = len(transcript(cut)) / cut.duration
    if not low <= rate <= high:
        sentence = f"{cut.id} has {rate:.1f} characters a second, where {low:g} to {high:g} are usual"
        yield Finding(cut.id, sentence, "unusual speaking rate", is_error=False)
