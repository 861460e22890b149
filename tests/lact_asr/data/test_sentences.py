"""Sentences: English inflection, a sound grammar, variety, determinism, and a user's own sentences."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from lact_asr.data.sentences import (
    MAX_WORDS,
    MIN_WORDS,
    generate_sentences,
    grammar_rules,
    inflect,
    read_sentences,
    word_sections,
)
from lact_asr.errors import InputError
from lact_asr.text import normalise_text


def take(count: int, seed: int | str = 0, **options) -> list:
    return list(itertools.islice(generate_sentences(seed, **options), count))


@pytest.mark.parametrize(
    ("entry", "form", "expected"),
    [
        ("child/children", "", "child"),
        ("child/children", "pl", "children"),
        ("fish/fish", "pl", "fish"),
        ("fire engine", "pl", "fire engines"),
        ("cherry", "pl", "cherries"),
        ("toy car", "pl", "toy cars"),
        ("bus", "pl", "buses"),
        ("boy", "pl", "boys"),
        ("watch", "pl", "watches"),
        ("eat/ate/eaten", "past", "ate"),
        ("eat/ate/eaten", "pp", "eaten"),
        ("eat/ate/eaten", "ing", "eating"),
        ("stop~", "past", "stopped"),
        ("stop~", "ing", "stopping"),
        ("sit~/sat/sat down", "", "sit down"),
        ("sit~/sat/sat down", "past", "sat down"),
        ("sit~/sat/sat down", "ing", "sitting down"),
        ("look at", "s", "looks at"),
        ("carry", "s", "carries"),
        ("carry", "past", "carried"),
        ("carry", "ing", "carrying"),
        ("play", "past", "played"),
        ("make/made/made", "ing", "making"),
        ("see/saw/seen", "ing", "seeing"),
        ("have/had/had", "s", "has"),
        ("go/went/gone", "s", "goes"),
        ("wash", "s", "washes"),
        ("hope", "past", "hoped"),
    ],
)
def test_inflection(entry, form, expected):
    assert inflect(entry, form) == expected


def test_every_slot_of_the_grammar_names_a_rule_or_a_section():
    slots = {
        slot for lines in grammar_rules().values() for line in lines for slot in re.findall(r"\{([^{}|]*)\}", line)
    }
    for slot in slots:
        name, _, form = slot.partition(":")
        assert form in ("", "pl", "s", "past", "pp", "ing"), slot
        assert (name in grammar_rules() and not form) or name in word_sections(), slot
    used = {slot.partition(":")[0] for slot in slots}
    assert set(grammar_rules()) | set(word_sections()) == used | {"utterance"}
    assert not set(grammar_rules()) & set(word_sections())


def test_sentences_are_normal_distinct_and_of_readable_length():
    sentences = take(5000)
    texts = [sentence.text for sentence in sentences]
    assert len(set(texts)) == 5000
    assert all(re.fullmatch(r"[A-Z']+( [A-Z']+)*", text) for text in texts)
    assert all(MIN_WORDS <= len(text.split()) <= MAX_WORDS for text in texts)
    assert all(normalise_text(sentence.spoken) == sentence.text for sentence in sentences)
    assert not any(set("{}|~/()") & set(sentence.spoken) for sentence in sentences)


def test_vocabulary_is_broad():
    counts = Counter(word for sentence in take(5000) for word in sentence.text.split())
    assert len(counts) > 1000
    # As in real text, a few words are most of it and most words are rare.
    assert sum(count for _, count in counts.most_common(200)) > 0.8 * counts.total()
    assert sum(count <= 5 for count in counts.values()) > 0.4 * len(counts)
    assert set(counts) >= {
        "THE",
        "SHE",
        "WOULD",
        "CAN'T",
        "CHILDREN",
        "WENT",
        "EATING",
        "ZERO",
        "ELEPHANT",
        "MONDAY",
    }


def test_articles_follow_the_sound():
    # Letters' names are upper case, so that the lower-case "a" is always the article.
    spoken = [sentence.spoken for sentence in take(15_000)]
    pairs = [match for text in spoken for match in re.findall(r"\b(an?) ([a-z]+)", text)]
    assert len(pairs) > 1000
    sounds_like_a_consonant = re.compile(r"[^aeiou]|uni|use|one|once")
    for article, word in pairs:
        assert (article == "a") == bool(sounds_like_a_consonant.match(word) and word not in ("honest", "hour")), word


def test_same_seed_same_sentences_also_in_another_process():
    assert take(300) == take(300)
    assert take(300) != take(300, seed=1)
    code = (
        "import itertools; from lact_asr.data.sentences import generate_sentences;"
        "print(*(s.text for s in itertools.islice(generate_sentences(0), 300)), sep='\\n')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines() == [sentence.text for sentence in take(300)]


def test_excluded_texts_do_not_occur():
    excluded = {sentence.text for sentence in take(200)[::2]}
    assert not excluded & {sentence.text for sentence in take(300, exclude=excluded)}


def test_reads_text_files_and_manifests(tmp_path):
    plain = tmp_path / "mine.txt"
    plain.write_text("MARK IS GOING, AND SO AM I\n\nShe has 3 cats.\nWhere's the café?\nmark is going and so am i\n")
    sentences = read_sentences(plain)
    assert [s.text for s in sentences] == ["MARK IS GOING AND SO AM I", "WHERE'S THE CAFE"]
    # All capitals would be spelt out by the synthesiser.
    assert [s.spoken for s in sentences] == ["mark is going, and so am I", "Where's the café?"]
    manifest = tmp_path / "train.jsonl"
    manifest.write_text(json.dumps({"audio_filepath": "a.wav", "text": "WE CALL IT BEAR"}) + "\n")
    assert [s.text for s in read_sentences(manifest)] == ["WE CALL IT BEAR"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"\n12 34\n", "holds no sentences"),
        ("binary.txt", b"\xff\xfe\x00", "cannot read sentences"),
        ("bad.jsonl", b'{"text": "FINE"}\n{"text": ', "line 2"),
        ("no_text.jsonl", b'{"words": "A"}\n', "line 1"),
        ("number.jsonl", b'{"text": 5}\n', "not a string"),
    ],
)
def test_refuses_unusable_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_sentences(tmp_path / name)
    assert name in str(caught.value)


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"gone\.txt"):
        read_sentences(tmp_path / "gone.txt")
