"""Word n-gram language models for the beam search: checked, and read by kenlm.

ARPA files (also .gz; OpenSLR's LibriSpeech models among them) and KenLM binaries; `lact_asr.inference.build_language_model` makes them.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import logging
import mmap
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lact_asr.errors import InputError
from lact_asr.inference.language_models.ngram_training import RESERVED_WORDS, UNKNOWN_WORD

if TYPE_CHECKING:
    import kenlm

logger = logging.getLogger(__name__)

_GZIP_MAGIC = b"\x1f\x8b"
_KENLM_BINARY_MAGIC = b"mmap lm http://kheafield.com/code"
_LOWEST_SPELLABLE_SHARE = 0.1
_SMALLEST_ENTRY_BYTES = 4  # "0", tab, a letter, end of line
_BUILD_HINT = "build one with `python -m lact_asr.inference.build_language_model --transcripts … --output lm.arpa`"


def _import_kenlm():
    try:
        import kenlm
    except ImportError as error:
        raise InputError("language models need the package kenlm: pip install 'lact-asr[beam]'") from error
    return kenlm


# ---------------------------------------------------------------- checking files before kenlm sees them


def _bad_model(path: Path, what: str) -> InputError:
    return InputError(f"language model {path} {what}")


def _arpa_counts(path: Path, lines: Iterator[str]) -> list[int]:
    """Read the header of an ARPA file up to `\\1-grams:`; returns how many n-grams of each order it promises."""
    first = next((line for line in lines if line.strip()), "")
    if first.strip() != "\\data\\":
        raise _bad_model(path, "is neither an ARPA file (its first line is not \\data\\) nor a KenLM binary")
    counts: list[int] = []
    for line in lines:
        entry = re.fullmatch(r"ngram\s+(\d+)\s*=\s*(\d+)", line.strip())
        if entry:
            counts.append(int(entry.group(2)))
        elif line.strip() == "\\1-grams:":
            return counts
        elif line.strip():
            break
    raise _bad_model(path, "is truncated or damaged: its ARPA header does not lead to a \\1-grams: section")


def _arpa_unigrams(named: Path, path: Path) -> list[str]:
    """Read the words of an ARPA file's 1-grams, after checks that a truncated or damaged file does not pass.

    Args:
        named: the file that the user gave, for messages.
        path: the uncompressed file.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size_bytes - 1024))
        ended = b"\\end\\" in file.read()
    words: list[str] = []
    try:
        with path.open(encoding="utf-8") as lines:
            counts = _arpa_counts(named, lines)
            # Asking first spares the memory that kenlm would set aside for a damaged header's billions.
            if not ended or sum(counts) * _SMALLEST_ENTRY_BYTES > size_bytes:
                raise _bad_model(named, "is truncated: it ends before all its n-grams; copy or download it again")
            if len(counts) < 2:
                raise _bad_model(named, f"is a unigram model, and kenlm reads bigrams and longer only; {_BUILD_HINT}")
            for line in itertools.islice(lines, counts[0]):
                fields = line.split()
                if len(fields) not in (2, 3):
                    raise _bad_model(named, f"is damaged: {line.strip()[:60]!r} is not a line of 1-grams")
                words.append(fields[1])
    except UnicodeDecodeError as error:
        raise _bad_model(named, "is neither a UTF-8 ARPA file nor a KenLM binary") from error
    return words


def _binary_unigrams(path: Path, model: kenlm.Model) -> list[str] | None:
    """Find the words of a KenLM binary, which build_binary appends to it by default; None if they are not there."""
    marker = UNKNOWN_WORD.encode() + b"\0"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.rfind(marker)
        tail = content[start + len(marker) :] if start >= 0 else b""
    try:
        words = tail.decode("utf-8").rstrip("\0").split("\0")
    except UnicodeDecodeError:
        return None
    return words if all(word and word in model for word in words) else None


def _companion_unigrams(path: Path, model: kenlm.Model) -> list[str] | None:
    """Read the word list beside a binary, one word a line: `lm.bin.unigrams.txt` or `lm.unigrams.txt`; None without such a file."""
    for companion in (path.with_name(f"{path.name}.unigrams.txt"), path.with_suffix(".unigrams.txt")):
        if companion.is_file():
            words = [word for word in companion.read_text(encoding="utf-8").split() if word in model]
            if not words:
                raise InputError(
                    f"word list {companion} holds no word of the language model {path}: remove or replace it"
                )
            return words
    return None


def _load_kenlm(named: Path, path: Path) -> kenlm.Model:
    kenlm = _import_kenlm()
    config = kenlm.Config()
    config.show_progress = False
    config.arpa_complain = kenlm.ARPALoadComplain.NONE
    try:
        return kenlm.Model(str(path), config)
    except (OSError, RuntimeError, ValueError) as error:
        # "Cannot read model 'lm.arpa' (lm/…cc:83 in void … threw …Exception because `…'. What is wrong Byte: 39)"
        reason = re.sub(
            r"^.*?threw \w+( because `.*?')?\.\s*|^Cannot read model '.*?' \(|\)$", "", str(error), flags=re.DOTALL
        )
        raise _bad_model(
            named, f"cannot be read, so it is damaged or not a language model; kenlm says: {reason[:200]}"
        ) from error


@contextlib.contextmanager
def uncompressed(path: Path) -> Iterator[Path]:
    """Give an uncompressed copy of a gzip file for the time of loading (kenlm reads gzip only where zlib's headers were at its build)."""
    with path.open("rb") as file:
        if file.read(2) != _GZIP_MAGIC:
            yield path
            return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "uncompressed")
        try:
            with gzip.open(path) as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        except EOFError as error:
            raise _bad_model(path, "is truncated: its gzip stream has no end; copy or download it again") from error
        except (OSError, zlib.error) as error:
            raise _bad_model(path, f"cannot be uncompressed: {error}") from error
        yield copy


# ---------------------------------------------------------------- loaded models


@dataclass(frozen=True)
class LanguageModelFit:
    """How well a language model predicts texts.

    Attributes:
        sentences, words: size of the texts.
        unknown_words: words that the model does not know.
        perplexity: per known word and sentence end; unknown words are left out of it but stay in the histories of others.
        perplexity_of_all: per word and sentence end, unknown words at the model's probability of `<unk>`.
    """

    sentences: int
    words: int
    unknown_words: int
    perplexity: float
    perplexity_of_all: float

    @property
    def unknown_rate(self) -> float:
        """Share of words that the model does not know (out-of-vocabulary rate)."""
        return self.unknown_words / self.words if self.words else 0.0


class LanguageModel:
    """A kenlm model with the list of its words.

    Attributes:
        path: the file it came from, for messages.
        model: the kenlm model; its scores are logarithms to base 10.
        words: all words that it knows, without `<s>`, `</s>` and `<unk>`; None where a binary keeps no list.
    """

    def __init__(self, path: Path, model: kenlm.Model, words: Iterable[str] | None):
        self.path = path
        self.model = model
        self.words = None if words is None else frozenset(words) - RESERVED_WORDS
        self._prefixes: dict[frozenset[str], frozenset[str]] = {}

    def __reduce__(self):
        """Another process loads the file again: kenlm's models cannot be pickled."""
        return load_language_model, (self.path,)

    @property
    def order(self) -> int:
        """Length of its longest n-grams."""
        return self.model.order

    def spelling(self, characters: Iterable[str]) -> dict[str, str]:
        """Match an acoustic model's characters with this model's: as they are, or in lower or upper case.

        So a lower-case language model serves an upper-case acoustic model and the other way round. Models of mixed case are used as far
        as their words are spellable.

        Args:
            characters: the acoustic model's characters (single ones, white space not among them).

        Returns:
            For each character, the one that stands for it in this model's words.

        Raises:
            InputError: hardly any word of this model can be spelt so: it belongs to another vocabulary.
        """
        characters = sorted(set(characters))
        same = {character: character for character in characters}
        if self.words is None:
            return same
        candidates = [same]
        for change_case in (str.lower, str.upper):
            changed = {character: change_case(character) for character in characters}
            # Else two characters could not be told apart afterwards, or one would become two (ß, SS).
            if len(set(changed.values())) == len(changed) and all(
                len(character) == 1 for character in changed.values()
            ):
                candidates.append(changed)
        shares = [self._spellable_share(set("".join(candidate.values()))) for candidate in candidates]
        best = max(range(len(candidates)), key=shares.__getitem__)
        if shares[best] < _LOWEST_SPELLABLE_SHARE:
            examples = ", ".join(repr(word) for word in sorted(self.words, key=len, reverse=True)[:3])
            raise _bad_model(
                self.path,
                f"is of another vocabulary: {shares[best]:.0%} of its words (such as {examples}) can be spelt with the "
                f"model's characters {''.join(characters)!r}; {_BUILD_HINT}",
            )
        if shares[best] < 0.5:
            logger.warning("only %.0f %% of the words of %s can be spelt by the model", 100 * shares[best], self.path)
        return candidates[best]

    def _spellable_share(self, alphabet: set[str]) -> float:
        return sum(alphabet.issuperset(word) for word in self.words) / len(self.words) if self.words else 0.0

    def prefixes(self, characters: Iterable[str]) -> frozenset[str] | None:
        """All beginnings of the words that can be spelt with these characters of its own; None where the words are not known."""
        if self.words is None:
            return None
        alphabet = frozenset(characters)
        if alphabet not in self._prefixes:
            spellable = (word for word in self.words if alphabet.issuperset(word))
            self._prefixes[alphabet] = frozenset(word[:end] for word in spellable for end in range(1, len(word) + 1))
        return self._prefixes[alphabet]

    def measure(self, texts: Iterable[str]) -> LanguageModelFit:
        """Perplexity and out-of-vocabulary rate on texts in this model's own spelling.

        Raises:
            ValueError: no texts.
        """
        sentences = words = unknown = 0
        log10_known = log10_unknown = 0.0
        for text in texts:
            sentences += 1
            for score, _, is_unknown in self.model.full_scores(text):
                words += 1
                unknown += is_unknown
                if is_unknown:
                    log10_unknown += score
                else:
                    log10_known += score
            words -= 1  # the sentence end is scored but is no word
        if sentences == 0:
            raise ValueError("no texts to measure the language model on")
        scored = words + sentences
        return LanguageModelFit(
            sentences,
            words,
            unknown,
            10.0 ** (-log10_known / (scored - unknown)),
            10.0 ** (-(log10_known + log10_unknown) / scored),
        )


def load_language_model(path: str | Path, characters: Iterable[str] | None = None) -> LanguageModel:
    """Load an ARPA file (also gzip-compressed) or a KenLM binary.

    Args:
        path: the file. For a binary without its words, a list `<path>.unigrams.txt` beside it is read.
        characters: if given, the acoustic model's characters, to refuse a model of another vocabulary at once.

    Raises:
        InputError: no such file, not a language model, a truncated or damaged one, or one of another vocabulary.
    """
    path = Path(path)
    if path.is_dir():
        raise _bad_model(path, "is a folder; give an ARPA file or a KenLM binary")
    if not path.is_file():
        raise _bad_model(path, f"does not exist; {_BUILD_HINT}")
    if path.stat().st_size == 0:
        raise _bad_model(path, "is empty")
    try:
        with uncompressed(path) as plain:
            with plain.open("rb") as file:
                is_binary = file.read(len(_KENLM_BINARY_MAGIC)) == _KENLM_BINARY_MAGIC
            words = None if is_binary else _arpa_unigrams(path, plain)
            model = _load_kenlm(path, plain)
            if is_binary:
                words = _companion_unigrams(path, model) or _binary_unigrams(plain, model)
    except PermissionError as error:
        raise _bad_model(path, "may not be read (permission denied)") from error
    if words is None:
        logger.warning(
            "%s keeps no list of its words, so beams are not held to them; put one at %s.unigrams.txt", path, path
        )
    language_model = LanguageModel(path, model, words)
    if characters is not None:
        language_model.spelling(characters)
    return language_model
