"""The one normalisation of text, for training targets, language models and scoring, and the vocabulary built on it.

Rules, in this order:

1. Typographic apostrophes (U+2018, U+2019, U+02BC, U+00B4, U+0060, U+2032) become the plain one; NFKD splits accents
   off letters and they are dropped (é -> E, ﬁ -> FI).
2. Upper case. Letters A-Z and apostrophes stay.
3. Full stops vanish (U.S. -> US); every other character (hyphens, dashes, commas, quotation marks …) becomes a space.
4. Apostrophes without a letter beside them, and doubled ones, vanish ('TIS and BOYS' keep theirs, and so do words in
   single quotation marks, which cannot be told from them); runs of white space become one space; none is left at the
   ends.

Digits, symbols that are spoken (%, &, $, …), mark-up (<noise>) and letters outside of A-Z have no single right
spelling, so nothing is guessed: they are removed like other characters, and `unspellable_characters` names them, so
that corpora leave such utterances out and say so.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

ENGLISH_CHARACTERS = "'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNKNOWN_TOKEN, WORD_DELIMITER_TOKEN = "<pad>", "<s>", "</s>", "<unk>", "|"
SPECIAL_TOKENS = (PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNKNOWN_TOKEN, WORD_DELIMITER_TOKEN)

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u00b4\u0060\u2032\u02b9", "'"))
_NOT_KEPT = re.compile(r"[^A-Z']+")
_LONELY_APOSTROPHE = re.compile(r"'{2,}|(?<![A-Z'])'(?![A-Z'])")
# Unicode categories of characters that are spoken: letters, digits and numbers, currency and mathematical symbols.
_SPOKEN_CATEGORIES = frozenset({"Lu", "Ll", "Lt", "Lo", "Nd", "Nl", "No", "Sc", "Sm"})
_SPOKEN_PUNCTUATION = frozenset("%&@#\u2030")


def _upper_without_accents(text: str) -> str:
    text = text.translate(_APOSTROPHES)
    if text.isascii():  # as nearly all transcripts are: letter by letter, a corpus of 960 h would take minutes to load
        return text.upper()
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(character for character in decomposed if not unicodedata.combining(character)).upper()


def normalise_text(text: str) -> str:
    """Bring a transcript to upper-case A-Z, apostrophes and single spaces (rules: see the module).

    Idempotent: ``normalise_text(normalise_text(t)) == normalise_text(t)``.
    """
    words = _NOT_KEPT.sub(" ", _upper_without_accents(text).replace(".", ""))
    return " ".join(_LONELY_APOSTROPHE.sub(" ", words).split())


def unspellable_characters(text: str) -> str:
    """Characters that are spoken and that `normalise_text` cannot spell, sorted; "" if there are none."""
    return "".join(
        sorted(
            {
                character
                for character in set(_upper_without_accents(text))
                if character not in ENGLISH_CHARACTERS
                and (character in _SPOKEN_PUNCTUATION or unicodedata.category(character) in _SPOKEN_CATEGORIES)
            }
        )
    )


def build_vocabulary(texts: Iterable[str] = ()) -> dict[str, int]:
    """Map characters to ids for a CTC tokenizer.

    `<pad>` is 0 and serves as the CTC blank; then `<s>`, `</s>`, `<unk>` and the word delimiter `|`, then the sorted
    characters. The English alphabet is always whole, so that vocabularies of small and large corpora agree; it gives
    32 entries.

    Args:
        texts: normalised transcripts; characters beyond the English ones are added.
    """
    characters = set(ENGLISH_CHARACTERS).union(*texts) - {" ", WORD_DELIMITER_TOKEN}
    return {token: index for index, token in enumerate((*SPECIAL_TOKENS, *sorted(characters)))}
