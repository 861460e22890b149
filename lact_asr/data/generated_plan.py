"""What a generated corpus says, and who says it: the whole corpus as a list, decided by its parameters alone.

Planning apart from speaking is what makes the audio independent of the number of processes.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lact_asr.data.espeak import VoiceSettings
from lact_asr.data.sentences import Sentence, generate_sentences

SUBSETS = ("train-generated", "dev-generated", "test-generated")
TRAIN_SUBSET, DEV_SUBSET, TEST_SUBSET = SUBSETS

ACCENTS = (
    "en",
    "en-us",
    "en-029",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-gb-x-rp",
    "en-us-nyc",
)  # "en" is British English
# eSpeak's plain voices. Its other variants are robots, whispers, whole sounds cut away, distorted vowels, or characters.
FEMALE_VARIANTS = ("f1", "f2", "f3", "f4", "f5")
MALE_VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8")

# A dev and a test set of 1/14 of the hours each: 0.1 h of the default 1.4 h.
EVALUATION_FRACTION = 1 / 14
MAX_EVALUATION_HOURS = 0.5
# Voices are reserved, so that dev and test have the same speakers whatever the hours are.
RESERVED_EVALUATION_SPEAKERS = 14
SPEED_RANGE_WPM = (140, 200)
_SPEED_WOBBLE = (0.92, 1.08)
MAX_PLANNED_SECONDS = 10.5  # at the slowest speed; the estimate is good to some 35 %, and no utterance may exceed 15 s

_FIRST_SPEAKER_ID = {TRAIN_SUBSET: 3001, DEV_SUBSET: 1001, TEST_SUBSET: 2001}
_UTTERANCES_PER_SPEAKER = 5


@dataclass(frozen=True)
class Speaker:
    """An accent and voice with its usual way of speaking."""

    speaker_id: int
    sex: str
    voice: VoiceSettings


@dataclass(frozen=True)
class Utterance:
    """Everything that decides the samples of one file.

    Attributes:
        speaker_id: As in the path ``subset/speaker/chapter/speaker-chapter-number``; a speaker has one chapter.
        peak_dbfs: Level of the loudest sample after normalisation.
        floor_dbfs: Level (RMS) of the white noise of the imagined recording equipment.
        silence_seconds: Before and after the speech.
    """

    subset: str
    speaker_id: int
    number: int
    sentence: Sentence
    voice: VoiceSettings
    peak_dbfs: float
    floor_dbfs: float
    silence_seconds: tuple[float, float]

    @property
    def chapter_id(self) -> int:
        return self.speaker_id * 10

    @property
    def utterance_id(self) -> str:
        return f"{self.speaker_id}-{self.chapter_id}-{self.number:04d}"

    @property
    def folder(self) -> str:
        """Relative to the corpus, with forward slashes."""
        return f"{self.subset}/{self.speaker_id}/{self.chapter_id}"


@dataclass(frozen=True)
class CorpusPlan:
    """All utterances, ordered by subset, speaker and number, and the speakers of each subset."""

    utterances: tuple[Utterance, ...]
    speakers: dict[str, tuple[Speaker, ...]]


def estimate_seconds(sentence: Sentence, speed_wpm: float) -> float:
    """About how long eSpeak takes for a sentence; fitted to its output."""
    letters = sum(character.isalpha() for character in sentence.spoken)
    inner_pauses = sum(sentence.spoken[:-1].count(mark) for mark in ",.?!;:")
    return (letters * 0.063 + 0.17 + 0.35 * inner_pauses) * 160 / speed_wpm


def is_speakable(sentence: Sentence) -> bool:
    """Whether the slowest speaker surely needs less than 15 seconds."""
    return estimate_seconds(sentence, SPEED_RANGE_WPM[0] * _SPEED_WOBBLE[0]) <= MAX_PLANNED_SECONDS


def _draw_speaker(rng: random.Random, speaker_id: int, accent: str, variant: str) -> Speaker:
    voice = VoiceSettings(
        language=accent,
        variant=variant,
        speed_wpm=round(rng.uniform(*SPEED_RANGE_WPM)),
        pitch=round(rng.uniform(30, 70)),
        pitch_range=round(rng.uniform(30, 70)),
    )
    return Speaker(speaker_id, "F" if variant in FEMALE_VARIANTS else "M", voice)


def draw_speakers(seed: int) -> dict[str, tuple[Speaker, ...]]:
    """Deal every pair of accent and variant to one subset. Returns subset -> speakers, in the order in which they are used."""
    rng = random.Random(f"speakers:{seed}")
    pairs = sorted(itertools.product(ACCENTS, FEMALE_VARIANTS + MALE_VARIANTS), key=lambda _: rng.random())
    reserved = RESERVED_EVALUATION_SPEAKERS
    dealt = {
        DEV_SUBSET: pairs[:reserved],
        TEST_SUBSET: pairs[reserved : 2 * reserved],
        TRAIN_SUBSET: pairs[2 * reserved :],
    }
    return {
        subset: tuple(_draw_speaker(rng, _FIRST_SPEAKER_ID[subset] + i, *pair) for i, pair in enumerate(dealt[subset]))
        for subset in SUBSETS
    }


def _draw_utterance(rng: random.Random, subset: str, speaker: Speaker, number: int, sentence: Sentence) -> Utterance:
    return Utterance(
        subset=subset,
        speaker_id=speaker.speaker_id,
        number=number,
        sentence=sentence,
        voice=replace(
            speaker.voice,
            speed_wpm=round(speaker.voice.speed_wpm * rng.uniform(*_SPEED_WOBBLE)),
            pitch=round(speaker.voice.pitch + rng.uniform(-5, 5)),
            pitch_range=round(speaker.voice.pitch_range + rng.uniform(-10, 10)),
        ),
        peak_dbfs=rng.uniform(-12, -1),
        floor_dbfs=rng.uniform(-75, -60),
        silence_seconds=(rng.uniform(0.05, 0.2), rng.uniform(0.05, 0.2)),
    )


def _plan_subset(
    subset: str, seconds: float, seed: int, voices: Sequence[Speaker], sentences: Iterator[Sentence]
) -> list[Utterance]:
    """Utterances for at least `seconds` by estimate, speakers taking turns."""
    rng = random.Random(f"utterances:{subset}:{seed}")
    chosen: list[Sentence] = []
    total = 0.0
    for sentence in sentences:
        if total >= seconds:
            break
        if is_speakable(sentence):
            chosen.append(sentence)
            total += (
                estimate_seconds(sentence, sum(SPEED_RANGE_WPM) / 2) * 1.015 + 0.25
            )  # mean of 1/speed; mean silence
    voices = voices[: max(1, min(len(voices), len(chosen) // _UTTERANCES_PER_SPEAKER))]
    utterances = [
        _draw_utterance(rng, subset, voices[i % len(voices)], i // len(voices), sentence)
        for i, sentence in enumerate(chosen)
    ]
    return sorted(utterances, key=lambda utterance: (utterance.speaker_id, utterance.number))


def _repeat_shuffled(sentences: Sequence[Sentence], seed: int) -> Iterator[Sentence]:
    rng = random.Random(f"repetitions:{seed}")
    while True:
        yield from sorted(sentences, key=lambda _: rng.random())


def plan_corpus(hours: float, seed: int, train_sentences: Sequence[Sentence] | None = None) -> CorpusPlan:
    """Decide every utterance of a corpus.

    Args:
        hours: Of all three subsets together, by estimate (a few percent off). Dev and test take `EVALUATION_FRACTION` each.
        seed: Decides speakers, sentences and levels.
        train_sentences: Spoken by the training subset instead of the grammar's, as often as the hours ask, each time by
            other speakers. Dev and test keep to the grammar, and to sentences that are not among these.

    Returns:
        The plan; no sentence occurs in two subsets, nor (grammar) twice, and no pair of accent and variant in two subsets.
    """
    evaluation_hours = min(hours * EVALUATION_FRACTION, MAX_EVALUATION_HOURS)
    speakers = draw_speakers(seed)
    taken = {sentence.text for sentence in train_sentences or ()}
    planned: dict[str, list[Utterance]] = {}
    for subset in (DEV_SUBSET, TEST_SUBSET):
        sentences = generate_sentences(f"{subset}:{seed}", exclude=taken)
        planned[subset] = _plan_subset(subset, evaluation_hours * 3600, seed, speakers[subset], sentences)
        taken |= {utterance.sentence.text for utterance in planned[subset]}
    if train_sentences is None:
        sentences = generate_sentences(f"{TRAIN_SUBSET}:{seed}", exclude=taken)
    else:
        sentences = _repeat_shuffled(train_sentences, seed)
    train_seconds = (hours - 2 * evaluation_hours) * 3600
    planned[TRAIN_SUBSET] = _plan_subset(TRAIN_SUBSET, train_seconds, seed, speakers[TRAIN_SUBSET], sentences)

    used = {utterance.speaker_id for subset in SUBSETS for utterance in planned[subset]}
    return CorpusPlan(
        utterances=tuple(utterance for subset in SUBSETS for utterance in planned[subset]),
        speakers={s: tuple(speaker for speaker in speakers[s] if speaker.speaker_id in used) for s in SUBSETS},
    )
