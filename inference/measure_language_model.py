"""How well a language model fits transcripts: ``python -m lact_asr.inference.measure_language_model --help``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lact_asr.command_line import program_name
from lact_asr.errors import exit_on_input_error


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Print words, perplexity and unknown words for each file of transcripts."""
    arguments = _parse(argv)
    # Imported after parsing: --help and mistyped flags answer at once.
    from lact_asr.inference.build_language_model import describe_fit
    from lact_asr.inference.language_models.language_model import load_language_model
    from lact_asr.inference.language_models.ngram_training import read_transcripts
    from lact_asr.text import ENGLISH_CHARACTERS

    samples = {path: read_transcripts(path) for path in arguments.transcripts}
    model = load_language_model(arguments.lm_path)
    for path, texts in samples.items():
        characters = set(ENGLISH_CHARACTERS).union(*texts) - {" "}
        to_its_own_case = str.maketrans(model.spelling(characters))
        print(describe_fit(str(path), model.measure(text.translate(to_its_own_case) for text in texts)))
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program_name("python -m lact_asr.inference.measure_language_model"), description=main.__doc__
    )
    parser.add_argument("--lm_path", required=True, type=Path, metavar="FILE", help="ARPA or KenLM binary")
    parser.add_argument(
        "--transcripts", nargs="+", required=True, type=Path, metavar="FILE_OR_FOLDER",
        help="text files with a sentence a line, JSON-lines manifests, folders of LibriSpeech's layout",
    )  # fmt: skip
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
