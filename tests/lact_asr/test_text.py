"""The one text normalisation and the vocabulary."""

import pytest

from lact_asr.text import build_vocabulary, normalise_text, unspellable_characters


@pytest.mark.parametrize(
    ("raw", "normalised"),
    [
        ("  Hello,\tworld!\n", "HELLO WORLD"),
        ("Don\u2019t \u201cstop\u201d", "DON'T STOP"),
        ("don\u00b4t", "DON'T"),
        ("'Tis the boys' hats", "'TIS THE BOYS' HATS"),
        ("rock 'n' roll ' now ''really''", "ROCK 'N' ROLL NOW REALLY"),
        ("well-known and/or this\u2014that", "WELL KNOWN AND OR THIS THAT"),
        ("the U.S. army", "THE US ARMY"),
        ("Café naïve ﬁsh", "CAFE NAIVE FISH"),
        ("...", ""),
        ("", ""),
        ("ALREADY NORMAL IT'S", "ALREADY NORMAL IT'S"),
    ],
)
def test_normalisation_rules(raw, normalised):
    assert normalise_text(raw) == normalised
    assert normalise_text(normalised) == normalised


@pytest.mark.parametrize(
    ("raw", "unspellable"),
    [
        ("In 1984", "1489"),
        ("50% & more", "%&05"),
        ("<noise> a", "<>"),
        ("Straße øre", "Ø"),
        ("日本 go", "日本"),
        ("£5", "5£"),
    ],
)
def test_speech_that_cannot_be_spelt_is_named(raw, unspellable):
    assert unspellable_characters(raw) == unspellable


@pytest.mark.parametrize("raw", ["Plain, text!", "it\u2019s \u201cquoted\u201d \u2014 well-known; (café)…", ""])
def test_punctuation_is_not_speech(raw):
    assert unspellable_characters(raw) == ""


def test_english_vocabulary_has_32_entries_whatever_the_corpus():
    vocabulary = build_vocabulary(["A B"])
    assert vocabulary == build_vocabulary()
    assert len(vocabulary) == 32
    assert [vocabulary[token] for token in ("<pad>", "<s>", "</s>", "<unk>", "|", "'", "A", "Z")] == [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        31,
    ]
    assert sorted(vocabulary.values()) == list(range(32))


def test_vocabulary_adds_further_characters_but_not_the_space():
    vocabulary = build_vocabulary(["ÄPFEL UND", "BIRNEN"])
    assert "Ä" in vocabulary
    assert " " not in vocabulary
    assert len(vocabulary) == 33
