"""The one text normalisation and the vocabulary."""

import json

import numpy as np
import pytest
import soundfile

from lact_asr.data.batching import make_dataloader
from lact_asr.data.corpora import load_corpus
from lact_asr.inference.language_models.ngram_training import read_transcripts
from lact_asr.inference.utterances import corpus_utterances
from lact_asr.processing_hybrid_asr import HybridASRProcessor
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


def test_training_language_model_and_scoring_see_one_text(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 16_000), 16_000)
    row = {"audio_filepath": "a.wav", "text": "\u201cDon\u2019t,\u201d said  Mr. Café\u2014quietly"}
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n")
    corpus = load_corpus(tmp_path, "m", "manifest")
    processor = HybridASRProcessor.from_vocabulary(build_vocabulary())
    batch = next(iter(make_dataloader(corpus.cuts, processor, 1, shuffle=True)))
    labels = processor.tokenizer.decode(batch["labels"][0], group_tokens=False)
    texts = {*batch["texts"], labels, *read_transcripts(tmp_path / "m.jsonl"), corpus_utterances(corpus)[0].reference}
    assert texts == {"DON'T SAID MR CAFE QUIETLY"}
