"""Train a word n-gram language model for the beam search.

    python -m lact_asr.inference.build_language_model --transcripts LibriSpeech/train-clean-100 --output lm.arpa --held_out LibriSpeech/dev-clean
    python -m lact_asr.inference.build_language_model --transcripts book.txt.gz corpus/train.jsonl --order 4 --vocabulary_size 50000 \\
        --prune_threshold 1e-8 --output lm.arpa.gz

Transcripts are text files with a sentence a line (.txt, .txt.gz), JSON-lines manifests, and folders of LibriSpeech's layout, a corpus or a subset.
They are normalised as training's are. The output's suffix says the format: .arpa, .arpa.gz, or .bin for a KenLM binary.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from lact_asr.command_line import program_name
from lact_asr.errors import InputError, exit_on_input_error

if TYPE_CHECKING:
    from lact_asr.inference.language_models.language_model import LanguageModelFit


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Read, train, and say how well the model fits."""
    arguments = _parse(argv)
    # Imported after parsing: --help and mistyped flags answer at once.
    from lact_asr.inference.language_models.language_model import load_language_model
    from lact_asr.inference.language_models.ngram_training import build_ngram, read_transcripts

    texts = [text for path in arguments.transcripts for text in read_transcripts(path)]
    held_out = [text for path in arguments.held_out for text in read_transcripts(path)]
    path = build_ngram(
        texts,
        arguments.output,
        arguments.order,
        words=_vocabulary(arguments, texts),
        prune_threshold=arguments.prune_threshold,
        estimator=arguments.estimator,
    )
    model = load_language_model(path)
    size = "" if model.words is None else f" of {len(model.words):,} words"
    print(
        f"{path}: {model.order}-gram model{size} from {len(texts):,} sentences, {path.stat().st_size / 2**20:.1f} MiB"
    )
    for name, sample in (("training text", texts), ("held-out text", held_out)):
        if sample:
            print(describe_fit(name, model.measure(sample)))
    return 0


def describe_fit(name: str, fit: LanguageModelFit) -> str:
    """One line on how well a model fits a text."""
    of_all = f" without unknown words ({fit.perplexity_of_all:.5g} with them)" if fit.unknown_words else ""
    return (
        f"{name}: {fit.words:,} words, perplexity {fit.perplexity:.1f}{of_all}, "
        f"unknown words {fit.unknown_words:,} ({fit.unknown_rate:.1%})"
    )


def _vocabulary(arguments: argparse.Namespace, texts: list[str]) -> frozenset[str] | None:
    """The words that the model is to know; None for all.

    Raises:
        InputError: a word list that cannot be read, or holds none of the words.
    """
    if arguments.vocabulary_size is None and arguments.word_list is None:
        return None
    counts = Counter(word for text in texts for word in text.split())
    if arguments.word_list is None:
        # Of equally frequent words the first in the alphabet, so that the choice does not depend on the order of sentences.
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return frozenset(ranked[: arguments.vocabulary_size])
    from lact_asr.inference.language_models.ngram_training import read_transcripts

    words = frozenset(word for line in read_transcripts(arguments.word_list) for word in line.split())
    if words.isdisjoint(counts):
        raise InputError(f"no word of {arguments.word_list} occurs in the transcripts")
    return words


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program_name("python -m lact_asr.inference.build_language_model"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--transcripts", nargs="+", required=True, type=Path, metavar="FILE_OR_FOLDER")
    parser.add_argument("--output", required=True, type=Path, help="lm.arpa, lm.arpa.gz, or lm.bin")
    parser.add_argument("--order", type=int, default=3, help="longest n-gram, 2 to 5 (default: %(default)s)")
    words = parser.add_mutually_exclusive_group()
    words.add_argument("--vocabulary_size", type=int, help="keep so many words, the most frequent (default: all)")
    words.add_argument("--word_list", type=Path, metavar="FILE", help="keep the words of a text file")
    parser.add_argument(
        "--prune_threshold",
        type=float,
        default=0.0,
        help="leave out n-grams without which the perplexity rises by less than this share, such as 1e-8 "
        "(Stolcke 1998; default: keep all)",
    )
    parser.add_argument(
        "--estimator",
        choices=("kaldingram", "lmplz"),
        default="kaldingram",
        help="kaldingram: Kneser-Ney in Python, in memory; lmplz: KenLM's program, for large texts (default: %(default)s)",
    )
    parser.add_argument("--held_out", nargs="*", default=[], type=Path, help="transcripts to measure perplexity on")
    arguments = parser.parse_args(argv)
    if arguments.vocabulary_size is not None and arguments.vocabulary_size < 1:
        raise InputError(f"--vocabulary_size must be 1 or more, not {arguments.vocabulary_size}.")
    if not 0 <= arguments.prune_threshold < 1:
        raise InputError(f"--prune_threshold must be from 0 to below 1, not {arguments.prune_threshold}.")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
