"""KenLM's own programs, where they are on the path: `lmplz` estimates n-grams, `build_binary` writes files that load at once.

The kenlm module of Python has neither: it only reads.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path

from lact_asr.errors import InputError


def require_program(name: str) -> None:
    """Raises `InputError` where a program is not on the path."""
    if shutil.which(name) is None:
        raise InputError(f"{name} is not on the path: it is one of KenLM's programs, https://github.com/kpu/kenlm")


def _run(program: str, *arguments: object, text: str | None = None) -> None:
    require_program(program)
    done = subprocess.run([program, *map(str, arguments)], input=text, text=True, capture_output=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"{program} failed: {reason[:300]}")


def estimate_with_lmplz(texts: Iterable[str], path: Path, order: int, words: Collection[str] | None = None) -> None:
    """Write an ARPA file of modified Kneser-Ney estimates (Heafield et al. 2013).

    Args:
        texts: one normalised sentence each.
        path: the file.
        order: longest n-gram.
        words: the vocabulary; None for all words.

    Raises:
        InputError: lmplz is not on the path, or failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = []
        if words is not None:
            word_file = Path(folder, "words")
            word_file.write_text(" ".join(sorted(words)), encoding="utf-8")
            vocabulary = ["--limit_vocab_file", word_file]
        # Small corpora do not hold every count that the discounts are estimated from.
        _run("lmplz", "--order", order, "--discount_fallback", "--arpa", path, *vocabulary, text="\n".join(texts))


def write_binary(arpa: Path, path: Path) -> None:
    """Turn an ARPA file into a KenLM binary, which is mapped into memory and shared between processes.

    Raises:
        InputError: build_binary is not on the path, or failed.
    """
    _run("build_binary", "trie", arpa, path)
