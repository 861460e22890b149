"""Subtitle cues keep their limits, lose no word, and end where the speaker pauses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lact_asr.inference.alignment.word_times import Word
from lact_asr.inference.transcript_formats.cues import Cue, CueLayout, make_cues


def speech(text: str, pauses: dict[int, float] | None = None, start: float = 0.5) -> list[Word]:
    """Words of 0.3 s each with 0.05 s between them, or `pauses[i]` before word i."""
    words, now = [], start
    for number, word in enumerate(text.split()):
        now += (pauses or {}).get(number, 0.05 if number else 0.0)
        words.append(Word(word, round(now, 3), round(now + 0.3, 3)))
        now += 0.3
    return words


def random_speech(seed: int) -> list[Word]:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 14, 300)
    pauses = {number: float(generator.exponential(0.4)) for number in range(0, 300, 3)}
    return speech(" ".join("ABCDEFGHIJKLMN"[:length] for length in lengths), pauses)


def text(cue: Cue) -> str:
    return " ".join(cue.lines)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("layout", [CueLayout(), CueLayout(line_characters=20, lines=1, cue_seconds=3.0)])
def test_limits_are_kept_and_no_word_is_lost(seed, layout):
    words = random_speech(seed)
    cues = make_cues(words, words[-1].end_seconds + 5, layout)
    assert " ".join(map(text, cues)) == " ".join(word.text for word in words)
    for cue in cues:
        assert len(cue.lines) <= layout.lines
        assert max(map(len, cue.lines)) <= layout.line_characters
        assert 0 < cue.end_seconds - cue.start_seconds <= layout.cue_seconds
    for one, other in itertools.pairwise(cues):
        assert one.end_seconds <= other.start_seconds


def test_cues_end_at_pauses():
    """A sentence too long for one cue is broken where the speaker pauses, not where the cue is full."""
    words = speech(
        "THE OLD DOG SAT ON THE MAT AND A CAT SAW THE BIRD IN THE TREE BEHIND THE HOUSE OF THE KING", {7: 0.5}
    )
    assert [text(cue) for cue in make_cues(words)] == [
        "THE OLD DOG SAT ON THE MAT",
        "AND A CAT SAW THE BIRD IN THE TREE BEHIND THE HOUSE OF THE KING",
    ]


def test_a_long_pause_always_ends_a_cue():
    cues = make_cues(speech("YES NO", {1: 1.2}))
    assert [text(cue) for cue in cues] == ["YES", "NO"]
    assert [text(cue) for cue in make_cues(speech("YES NO", {1: 0.9}))] == ["YES NO"]


def test_text_without_pauses_is_shared_out_evenly():
    cues = make_cues(speech(" ".join(["WORD"] * 20)))  # 99 characters, 7 s
    assert [text(cue).count("WORD") for cue in cues] == [10, 10]


def test_lines_are_balanced():
    (cue,) = make_cues(speech("A CAT SAW A DOG ON THE OLD MAT AND SAT DOWN"))
    assert cue.lines == ("A CAT SAW A DOG ON THE", "OLD MAT AND SAT DOWN")


def test_short_cues_stay_until_the_next_cue_or_the_end():
    words = [Word("YES", 1.0, 1.2), Word("NO", 5.0, 5.1), Word("OH", 6.2, 6.3)]
    cues = make_cues(words, audio_seconds=6.5)
    assert [(cue.start_seconds, cue.end_seconds) for cue in cues] == [(1.0, 2.0), (5.0, 6.0), (6.2, 6.5)]


def test_a_word_longer_than_a_line_has_a_line_of_its_own():
    word = "X" * 60
    cues = make_cues(speech(f"A {word} B"))
    assert [line for cue in cues for line in cue.lines] == ["A", word, "B"]


def test_silence_has_no_cues():
    assert make_cues([]) == []
