"""Find when each word of known transcripts was said: ``python -m lact_asr.inference.align --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lact_asr.command_line import program_name
from lact_asr.errors import InputError, exit_on_input_error
from lact_asr.inference.transcript_formats.formats import (
    FORMATS,
    FORMATS_HELP,
    check_destination,
    choose_format,
    refuse_to_overwrite,
    write_transcripts,
)
from lact_asr.shared_flags import add_checkpoint, add_dataset_type
from lact_asr.text import normalise_text, unspellable_characters

if TYPE_CHECKING:
    from lact_asr.inference.alignment.word_times import TimedTranscript
    from lact_asr.inference.evaluation import Utterance
    from lact_asr.inference.recogniser import Recogniser

DESCRIPTION = """Find when each word of known transcripts was said (CTC forced alignment).

  one recording     --audio_file a.wav --text "HELLO WORLD", or --text_file a.txt
  a corpus subset   --data_dir LIBRISPEECH --subset test-clean

Each word comes with the probability that its frames spell it: low ones show where a transcript is wrong."""


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Align, write; a recording that cannot be aligned is reported and the rest go on."""
    arguments = _parse(argv)
    # Imported after parsing: --help and mistyped flags answer at once.
    from lact_asr.checkpoint import load_checkpoint
    from lact_asr.devices import choose_device
    from lact_asr.inference.decoding import make_decoder
    from lact_asr.inference.recogniser import Recogniser

    refuse_to_overwrite(arguments.output, _inputs(arguments))
    utterances = _utterances(arguments)
    check_destination(arguments.output_format, arguments.output, [utterance.id for utterance in utterances])
    checkpoint = load_checkpoint(arguments.checkpoint)
    decoder = make_decoder(checkpoint.processor.vocabulary, checkpoint.model.config.pad_token_id)
    recogniser = Recogniser(checkpoint, decoder, device=choose_device(arguments.device))
    transcripts = _align(utterances, recogniser, arguments.characters)
    write_transcripts(transcripts, arguments.output_format, arguments.output)
    return 0


def _inputs(arguments: argparse.Namespace) -> list[str | Path | None]:
    """The files that are read; of a corpus its manifest, which has the suffix of a transcript format."""
    inputs = [arguments.audio_file, arguments.text_file, arguments.checkpoint, arguments.data_dir]
    for name in arguments.subset.split(",") if arguments.data_dir is not None else ():
        inputs += [name, arguments.data_dir / name, arguments.data_dir / f"{name}.jsonl"]
    return inputs


def _utterances(arguments: argparse.Namespace) -> list[Utterance]:
    """What to align, with normalised references.

    Raises:
        InputError: no such file or subset, or a transcript without words or with signs that are spoken in more than one way.
    """
    from lact_asr.audio import read_audio
    from lact_asr.data.corpora import load_corpus
    from lact_asr.inference.evaluation import Utterance
    from lact_asr.inference.utterances import corpus_utterances

    if arguments.data_dir is not None:
        corpus = load_corpus(arguments.data_dir, arguments.subset, arguments.dataset_type)
        return corpus_utterances(corpus)[: arguments.max_samples]
    text = _read_text(arguments.text_file) if arguments.text is None else arguments.text
    if signs := unspellable_characters(text):
        raise InputError(
            f"The transcript holds {' '.join(signs)}, which can be said in several ways: write it in words."
        )
    samples = read_audio(arguments.audio_file)
    return [Utterance(str(arguments.audio_file), normalise_text(text), lambda: samples)]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"The transcript {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"The transcript {path} is not UTF-8 text.") from None


def _align(utterances: Sequence[Utterance], recogniser: Recogniser, characters: bool) -> list[TimedTranscript]:
    """Raises `InputError` where none of the utterances can be aligned."""
    from tqdm import tqdm

    from lact_asr.inference.alignment.forced_alignment import align_recording

    transcripts = []
    for utterance in tqdm(utterances, "aligning", unit="utterance", mininterval=1.0, disable=len(utterances) == 1):
        try:
            transcripts.append(
                align_recording(utterance.id, utterance.read(), utterance.reference, recogniser, characters)
            )
        except InputError as error:
            if len(utterances) == 1:
                raise
            tqdm.write(f"{utterance.id}: {error}", file=sys.stderr)
    if not transcripts:
        raise InputError(f"None of the {len(utterances)} recordings could be aligned.")
    return transcripts


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program_name("python -m lact_asr.inference.align"),
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_checkpoint(parser)
    parser.add_argument("--audio_file", type=Path, default=None, help="a recording, with --text or --text_file")
    parser.add_argument("--text", default=None, help="what is said in it")
    parser.add_argument("--text_file", type=Path, default=None, help="a file that holds what is said in it")
    parser.add_argument("--data_dir", type=Path, default=None, help="a corpus, with --subset")
    parser.add_argument("--subset", default=None, help="subset of the corpus, or of a manifest folder")
    add_dataset_type(parser)
    parser.add_argument("--max_samples", type=int, default=None, help="only the first so many utterances")
    parser.add_argument("--characters", action="store_true", help="also each character's times (jsonl, textgrid)")
    parser.add_argument("--output", type=Path, default=None, metavar="FILE|FOLDER", help="default: stdout")
    parser.add_argument(
        "--output_format", choices=tuple(FORMATS), default=None, help=f"{FORMATS_HELP} (default: by --output, else ctm)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    if (arguments.audio_file is None) == (arguments.data_dir is None):
        raise InputError("Give --audio_file or --data_dir, not both.")
    if arguments.audio_file is not None and (arguments.text is None) == (arguments.text_file is None):
        raise InputError("--audio_file needs --text or --text_file, not both.")
    if arguments.data_dir is not None and arguments.subset is None:
        raise InputError("--data_dir needs --subset.")
    arguments.output_format = choose_format(arguments.output_format, arguments.output) or _default_format(
        arguments.output
    )
    return arguments


def _default_format(output: Path | None) -> str:
    """Of an output whose suffix names no format: CTM, but a suffix of something else is a slip."""
    if output is not None and output.suffix:
        suffixes = ", ".join(format.suffix for format in FORMATS.values())
        raise InputError(
            f"--output {output} has the suffix of no transcript format: take {suffixes}, or give --output_format."
        )
    return "ctm"


if __name__ == "__main__":
    sys.exit(main())
