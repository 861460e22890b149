"""Training of word n-gram language models from transcripts: Kneser-Ney estimates by kaldingram, written as ARPA files.

The command is `python -m lact_asr.inference.build_language_model`.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from lact_asr.atomic_files import replacing
from lact_asr.data.corpus_listings import manifest_text
from lact_asr.errors import InputError
from lact_asr.inference.language_models.kenlm_programs import estimate_with_lmplz, require_program, write_binary
from lact_asr.text import normalise_text

UNKNOWN_WORD = "<unk>"
RESERVED_WORDS = frozenset({"<s>", "</s>", UNKNOWN_WORD, "<UNK>"})
_ORDERS = (2, 3, 4, 5)  # kenlm reads no unigram models; kaldingram's longest are five words
# Kneser-Ney's n1 / (n1 + 2 n2) reaches 1 in small corpora, which would give n-grams seen once a probability of zero, and 0 in repetitive ones,
# which would leave nothing to back off with.
_LOWEST_DISCOUNT, _HIGHEST_DISCOUNT = 0.1, 0.9


def _kneser_ney_discount(counts: Iterable[int]) -> float:
    """n1 / (n1 + 2 n2), Kneser and Ney 1995, where n_i is how many of the counts equal i; kept within bounds."""
    frequency = Counter(counts)
    denominator = frequency[1] + 2 * frequency[2]
    discount = frequency[1] / denominator if denominator else 0.0
    return min(max(discount, _LOWEST_DISCOUNT), _HIGHEST_DISCOUNT)


def _give_unknown_word_its_share(ngrams) -> None:
    """Add `<unk>` with the mass that the unigrams' discount has freed: kaldingram knows no unknown word, and kenlm then answers -100."""
    unigrams = ngrams.counts[0][()]
    unigrams.word_to_count.setdefault(UNKNOWN_WORD, 0)
    unigrams.word_to_f[UNKNOWN_WORD] = 0.0  # a limited vocabulary has given it a share as a word already
    unigrams.word_to_f[UNKNOWN_WORD] = 1.0 - sum(unigrams.word_to_f.values())


def _estimate(texts: Iterable[str], order: int, vocabulary: Collection[str] | None):
    """Count the n-grams of the texts and estimate Kneser-Ney probabilities; the result is kaldingram's `NgramCounts`.

    Words that a vocabulary lacks are counted as the unknown word.
    """
    try:
        from kaldingram.train import NgramCounts
    except ImportError as error:
        raise InputError(
            "training language models needs the package kaldingram: pip install 'lact-asr[beam]'"
        ) from error

    ngrams = NgramCounts(order)
    sentence_count = 0
    for text in tqdm(texts, desc="counting n-grams", unit="sentence", mininterval=1.0):
        words = text.split()
        if not RESERVED_WORDS.isdisjoint(words):
            raise InputError(
                f"a transcript holds a word that n-gram models reserve ({', '.join(sorted(RESERVED_WORDS))}): {text[:80]!r}"
            )
        if vocabulary is not None:
            words = [word if word in vocabulary else UNKNOWN_WORD for word in words]
        if words:
            ngrams.add_raw_counts_from_line(" ".join(words))
            sentence_count += 1
    if sentence_count == 0:
        raise InputError("the transcripts hold no words, so no language model can be built from them")
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar for every order of every stage
        ngrams.cal_discounting_constants()
        ngrams.d = [min(max(discount, _LOWEST_DISCOUNT), _HIGHEST_DISCOUNT) for discount in ngrams.d]
        ngrams.d[0] = _kneser_ney_discount(len(contexts) for contexts in ngrams.counts[0][()].word_to_context.values())
        ngrams.cal_f()
        _give_unknown_word_its_share(ngrams)
        ngrams.cal_bow()
    return ngrams


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Make an empty temporary neighbour of `path` that takes its place if all goes well."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        with replacing(path) as temporary:
            temporary.touch()
            yield temporary
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"cannot write language model {path}: {path.parent} is not a folder") from error
    except OSError as error:
        raise InputError(f"cannot write language model {path}: {error.strerror or error}") from error


def build_ngram(
    texts: Iterable[str],
    path: str | Path,
    order: int = 3,
    *,
    words: Collection[str] | None = None,
    prune_threshold: float = 0.0,
    estimator: str = "kaldingram",
) -> Path:
    """Train a back-off n-gram model with Kneser-Ney smoothing and write it as ARPA (.gz: compressed), or as KenLM binary (.bin).

    Differs from plain kaldingram in two points: unigrams are discounted too and what this frees is the probability of `<unk>`, and discounts
    stay within [0.1, 0.9]. For every history the probabilities of all words, `</s>` and `<unk>` sum to one.

    Args:
        texts: one normalised sentence each; empty ones are passed over.
        path: file to write; it appears only when complete.
        order: longest n-gram, 2 to 5.
        words: those that the model is to know, others are its unknown word; None for all.
        prune_threshold: n-grams without which the perplexity rises by less than this share are left out (Stolcke 1998).
        estimator: "kaldingram", or "lmplz" for KenLM's program.

    Returns:
        The path written.

    Raises:
        InputError: an impossible order, no words, a reserved word among them, a program of KenLM's that is missing, or a file that cannot be
            written.
    """
    if order not in _ORDERS:
        raise InputError(f"n-gram order {order} is not possible: choose one of {', '.join(map(str, _ORDERS))}")
    path = Path(path)
    convert = {".bin": write_binary, ".gz": _compress}.get(path.suffix)
    # Checked first: neither a program that is missing nor a folder that cannot be written should cost the training.
    if convert is write_binary:
        require_program("build_binary")
    with _replacing(path) as temporary:
        if convert is None:
            _write_arpa(texts, temporary, order, words, prune_threshold, estimator)
        else:
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                arpa = Path(folder, "lm.arpa")
                _write_arpa(texts, arpa, order, words, prune_threshold, estimator)
                convert(arpa, temporary)
    return path


def _write_arpa(
    texts: Iterable[str], path: Path, order: int, words: Collection[str] | None, prune_threshold: float, estimator: str
) -> None:
    if estimator == "lmplz":
        estimate_with_lmplz(texts, path, order, words)
    else:
        ngrams = _estimate(texts, order, words)
        with path.open("w", encoding="utf-8") as file, contextlib.redirect_stderr(io.StringIO()):
            ngrams.print_as_arpa(file)
    if prune_threshold:
        path.write_text(_pruned(path.read_text(encoding="utf-8"), prune_threshold), encoding="utf-8")


def _compress(path: Path, compressed: Path) -> None:
    with path.open("rb") as source, gzip.open(compressed, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _pruned(arpa: str, threshold: float) -> str:
    from kaldingram.prune import ArpaParser, prune

    parser = ArpaParser()
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar for every order
        (model,) = parser.loads(arpa)
        prune(model, threshold, 2)
        return parser.dumps(model)


def _manifest_texts(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            yield manifest_text(line, f"{path}, line {number},")


def _plain_texts(path: Path) -> Iterator[str]:
    is_librispeech = path.name.endswith(".trans.txt")  # each line begins with the utterance's name
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield line.partition(" ")[2] if is_librispeech else line


def read_transcripts(path: str | Path) -> list[str]:
    """Read normalised sentences, without touching audio.

    Args:
        path: a JSON-lines manifest (`text` of each line), a text file with a sentence a line (.txt, .txt.gz), a LibriSpeech `.trans.txt`, or
            a folder, searched for `.trans.txt` files to any depth.

    Raises:
        InputError: no such file or folder, a line that is not as expected, or no words at all.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"transcripts {path} do not exist")
    files = sorted(path.rglob("*.trans.txt")) if path.is_dir() else [path]
    if not files:
        raise InputError(
            f"folder {path} holds no .trans.txt files: give a LibriSpeech folder, a .jsonl manifest or a text file"
        )
    try:
        raw = [text for file in files for text in (_manifest_texts if file.suffix == ".jsonl" else _plain_texts)(file)]
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"transcripts {path} cannot be read as text: {error}") from error
    texts = [text for text in map(normalise_text, raw) if text]
    if not texts:
        raise InputError(f"transcripts {path} hold no words")
    return texts
