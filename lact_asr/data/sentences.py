"""Sentences to be spoken: a grammar over a word list (both plain text beside this file), or lines of a user's file.

`grammar.txt` holds the sentence rules and `words.txt` the vocabulary by meaning; here are only the reader, English inflection
and the expansion of a rule into one sentence. The same seed always gives the same sentences, none twice.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lact_asr.data.corpus_listings import manifest_text
from lact_asr.errors import InputError
from lact_asr.text import normalise_text, unspellable_characters

WORDS_FILE = Path(__file__).with_name("words.txt")
GRAMMAR_FILE = Path(__file__).with_name("grammar.txt")
MIN_WORDS, MAX_WORDS = 3, 20
ZIPF_EXPONENT = 1.25

_INNERMOST_SLOT = re.compile(r"\{([^{}]*)\}")
_OPTIONAL_PART = re.compile(r"\(([^()]*)\)")
_WEIGHT = re.compile(r"(\d+) \* (.*)")
# English says "a" before these in spite of the vowel letter, and "an" before those in spite of the consonant.
_A_IN_SPITE_OF_VOWEL = re.compile(r"(one|once|uni|use|usu|euro)", re.IGNORECASE)
_AN_IN_SPITE_OF_CONSONANT = re.compile(r"(hour|honest)", re.IGNORECASE)
_IRREGULAR_S = {"have": "has", "go": "goes"}
_MAX_DUPLICATES_IN_A_ROW = 10_000


@dataclass(frozen=True)
class Sentence:
    """What one utterance says (one sentence or two): what the synthesiser is given (with punctuation, for its intonation) and the transcript."""

    spoken: str
    text: str


# ---- inflection -------------------------------------------------------------------------------------------------------


def _add_s(word: str) -> str:
    if word in _IRREGULAR_S:
        return _IRREGULAR_S[word]
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + "s"


def _add_ed(word: str, doubles: bool) -> str:
    if word.endswith("e"):
        return word + "d"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ied"
    return word + (word[-1] if doubles else "") + "ed"


def _add_ing(word: str, doubles: bool) -> str:
    if word.endswith("ie"):
        return word[:-2] + "ying"
    if word.endswith("e") and not re.search(r"(ee|oe|ye)$", word):
        return word[:-1] + "ing"
    return word + (word[-1] if doubles else "") + "ing"


def inflect(entry: str, form: str) -> str:
    """Inflect one entry of `words.txt`.

    Args:
        entry: ``child/children``, ``fire engine``, ``eat/ate/eaten``, ``stop~`` (doubles its last letter), ``look at``, ``sit~/sat/sat down``.
        form: ``""`` (as it is), ``pl`` (noun plural, on the last word), or for verbs, on the first word, ``s``, ``past``, ``pp``, ``ing``.

    Raises:
        ValueError: Unknown form.
    """
    if form == "pl":
        parts = entry.split("/")
        if len(parts) > 1:
            return parts[1]
        first, space, last = parts[0].rpartition(" ")
        return first + space + _add_s(last)
    head, space, tail = entry.partition(" ")
    parts = head.split("/")
    doubles, base = parts[0].endswith("~"), parts[0].rstrip("~")
    if form == "":
        head = base
    elif form == "s":
        head = _add_s(base)
    elif form == "ing":
        head = _add_ing(base, doubles)
    elif form in ("past", "pp"):
        irregular = parts[1 if form == "past" else -1] if len(parts) > 1 else None
        head = irregular or _add_ed(base, doubles)
    else:
        raise ValueError(f"unknown form {form!r} of {entry!r}")
    return head + space + tail


# ---- the two text files -----------------------------------------------------------------------------------------------


def _read_sections(path: Path) -> dict[str, list[str]]:
    """``[name]`` headed sections of a file -> their non-empty lines, without ``#`` comments."""
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            if line[1:-1] in sections:
                raise ValueError(f"{path.name}: section {line} twice")
            lines = sections.setdefault(line[1:-1], [])
        elif line and not line.startswith("#"):
            lines.append(line)
    return sections


@functools.cache
def word_sections() -> Mapping[str, list[str]]:
    """The sections of `words.txt`: name -> entries, uninflected."""
    entries = {
        name: [e.strip() for e in ",".join(lines).split(",")] for name, lines in _read_sections(WORDS_FILE).items()
    }
    return {name: [entry for entry in listed if entry] for name, listed in entries.items()}


@functools.cache
def grammar_rules() -> Mapping[str, list[str]]:
    """The rules of `grammar.txt`: name -> alternatives; one with weight n stands n times."""
    rules: dict[str, list[str]] = {}
    for name, lines in _read_sections(GRAMMAR_FILE).items():
        rules[name] = []
        for line in lines:
            weighted = _WEIGHT.fullmatch(line)
            rules[name] += [weighted[2]] * int(weighted[1]) if weighted else [line]
    return rules


# ---- expansion --------------------------------------------------------------------------------------------------------


@functools.cache
def _cumulative_weights(count: int) -> list[float]:
    """Sums of rank^-1.25, Zipf's law: in real text a kind's word of rank r is about that much rarer than its first."""
    return list(itertools.accumulate(rank**-ZIPF_EXPONENT for rank in range(1, count + 1)))


class _Expander:
    """Expands rules into text; words of a section are drawn by Zipf's law in the order of `words.txt`.

    Words then repeat as they do in real text: a model meets the usual ones often, and rare ones now and then.
    """

    def __init__(self, seed: int | str) -> None:
        self._rng = random.Random(f"sentences:{seed}")

    def _pick(self, options: list[str]) -> str:
        # Not rng.choice or rng.shuffle: their algorithms may change between Python versions, random() is promised not to.
        return options[int(self._rng.random() * len(options))]

    def _draw_word(self, section: str, form: str) -> str:
        entries = word_sections()[section]
        weights = _cumulative_weights(len(entries))
        return inflect(entries[bisect.bisect(weights, self._rng.random() * weights[-1])], form)

    def _fill_slot(self, slot: str) -> str:
        """One ``{slot}``'s content -> text, which may hold slots again."""
        if "|" in slot:
            return self._pick(slot.split("|"))
        name, _, form = slot.partition(":")
        if name in grammar_rules() and not form:
            return self.expand(name)
        if name in word_sections():
            return self._draw_word(name, form)
        raise ValueError(f"grammar.txt: {{{slot}}} is neither a rule nor a section of words.txt")

    def expand(self, rule: str) -> str:
        """A rule's name -> one text of it, slots filled from the innermost outwards."""
        text = self._pick(grammar_rules()[rule])
        text = _OPTIONAL_PART.sub(lambda part: part[1] if self._rng.random() < 0.5 else "", text)
        while slot := _INNERMOST_SLOT.search(text):
            text = text[: slot.start()] + self._fill_slot(slot[1]) + text[slot.end() :]
        return text


def _fix_articles(text: str) -> str:
    """``a`` before a vowel sound -> ``an``."""

    def article(match: re.Match) -> str:
        article_, word = match[1], match[2]
        vowel = word[0].lower() in "aeiou" and not _A_IN_SPITE_OF_VOWEL.match(word)
        return f"{article_}n {word}" if vowel or _AN_IN_SPITE_OF_CONSONANT.match(word) else f"{article_} {word}"

    return re.sub(r"\b(a) ([A-Za-z]+)", article, text)


def _tidy(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ([,.?!])", r"\1", text)
    text = _fix_articles(text)
    return re.sub(r"(^|[.?!] )([a-z])", lambda start: start[1] + start[2].upper(), text)


def generate_sentences(seed: int | str, exclude: Iterable[str] = ()) -> Iterator[Sentence]:
    """Yield grammar-made English utterances, of one or two sentences, each `text` only once.

    Args:
        seed: Decides everything.
        exclude: Texts, in the form of `lact_asr.text.normalise_text`, that must not occur.

    Yields:
        Those of `MIN_WORDS` to `MAX_WORDS` words.

    Raises:
        InputError: The grammar is used up (it has many millions of sentences).
    """
    expander = _Expander(seed)
    seen = set(exclude)
    duplicates = 0
    while duplicates < _MAX_DUPLICATES_IN_A_ROW:
        spoken = _tidy(expander.expand("utterance"))
        text = normalise_text(spoken)
        if text in seen or not MIN_WORDS <= len(text.split()) <= MAX_WORDS:
            duplicates += 1
            continue
        duplicates = 0
        seen.add(text)
        yield Sentence(spoken, text)
    raise InputError("the sentence grammar has no new sentences left; ask for fewer hours")


# ---- a user's own sentences -------------------------------------------------------------------------------------------


def read_sentences(path: str | Path) -> list[Sentence]:
    """Read sentences to speak: a plain text file with one a line, or a ``.jsonl`` manifest with a ``text`` field.

    Args:
        path: The file. Empty lines, repeated sentences and those with digits or other characters without one
            right spelling are left out; the order is the file's.

    Raises:
        InputError: No such file, not UTF-8, a bad manifest line (named by number), or no sentence at all.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read sentences from {path}: {error}") from error
    sentences: dict[str, Sentence] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        raw = manifest_text(line, f"{path}, line {number},") if path.suffix == ".jsonl" else line
        text = normalise_text(raw)
        if text and not unspellable_characters(raw):
            # All capitals would be spelt letter by letter; punctuation, where there is any, shapes the intonation.
            spoken = re.sub(r"\bi\b", "I", raw.strip().lower()) if raw.isupper() else raw.strip()
            sentences.setdefault(text, Sentence(spoken, text))
    if not sentences:
        raise InputError(f"{path} holds no sentences")
    return list(sentences.values())
