"""Write a results file's transcripts in another format: ``python -m lact_asr.inference.convert_results --help``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lact_asr.command_line import program_name
from lact_asr.errors import InputError, exit_on_input_error
from lact_asr.inference.transcript_formats.formats import (
    FORMATS,
    FORMATS_HELP,
    check_destination,
    choose_format,
    refuse_to_overwrite,
    timed_transcripts,
    write_transcripts,
)


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Write the transcripts of a results file as text, or, transcribed with --word_times, as subtitles, CTM or TextGrids."""
    arguments = _parse(argv)
    from lact_asr.inference.results.results_file import read_results

    refuse_to_overwrite(arguments.output, [arguments.results])
    transcripts = timed_transcripts(read_results(arguments.results), arguments.output_format)
    if not transcripts:
        raise InputError(f"There is no transcript in {arguments.results}.")
    check_destination(arguments.output_format, arguments.output, [transcript.id for transcript in transcripts])
    write_transcripts(transcripts, arguments.output_format, arguments.output)
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program_name("python -m lact_asr.inference.convert_results"), description=main.__doc__
    )
    parser.add_argument(
        "--results", type=Path, required=True, metavar="FILE", help="JSON lines that transcribing wrote"
    )
    parser.add_argument(
        "--output", type=Path, default=None, metavar="FILE|FOLDER", help="what to write (default: stdout)"
    )
    parser.add_argument(
        "--output_format", choices=tuple(FORMATS), default=None, help=f"{FORMATS_HELP} (default: by --output)"
    )
    arguments = parser.parse_args(argv)
    arguments.output_format = choose_format(arguments.output_format, arguments.output)
    if arguments.output_format is None:
        raise InputError("Give --output_format, or an --output whose suffix says it.")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
