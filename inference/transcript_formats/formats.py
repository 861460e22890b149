"""The formats of transcripts by name and file suffix, and writing them."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lact_asr.atomic_files import write_text
from lact_asr.errors import InputError
from lact_asr.inference.alignment.word_times import TimedTranscript
from lact_asr.inference.transcript_formats.ctm import ctm
from lact_asr.inference.transcript_formats.recording_names import recording_names
from lact_asr.inference.transcript_formats.subtitles import srt, vtt
from lact_asr.inference.transcript_formats.textgrid import textgrid

if TYPE_CHECKING:
    from lact_asr.inference.results.utterance_result import UtteranceResult


@dataclass(frozen=True)
class Format:
    """How transcripts are written: `of_all` puts all into one file, `of_one` makes a file for each recording; most `need_word_times`."""

    suffix: str
    meaning: str
    of_all: Callable[[Sequence[TimedTranscript]], str] | None = None
    of_one: Callable[[TimedTranscript], str] | None = None
    need_word_times: bool = True


def timed_transcripts(results: Iterable[UtteranceResult], format_name: str) -> list[TimedTranscript]:
    """What can be written of results in a format; failed ones are left out.

    Raises:
        InputError: a result without word times, from a results file that was written without them, though the format needs them.
    """
    transcripts = []
    for result in results:
        if result.failed:
            continue
        if result.words is None and FORMATS[format_name].need_word_times:
            raise InputError(f"The result of {result.id} has no word times; transcribe with --word_times.")
        transcripts.append(TimedTranscript(result.id, result.hypothesis, result.words, result.audio_seconds))
    return transcripts


def text_lines(transcripts: Iterable[TimedTranscript]) -> str:
    """A line for each recording: its name, a tab, its transcript."""
    return "".join(f"{transcript.id}\t{transcript.text}\n" for transcript in transcripts)


def json_lines(transcripts: Iterable[TimedTranscript]) -> str:
    """A JSON object for each recording."""
    return "".join(json.dumps(asdict(transcript), ensure_ascii=False) + "\n" for transcript in transcripts)


FORMATS = {
    "text": Format(".txt", "a line a recording: name, tab, transcript", of_all=text_lines, need_word_times=False),
    "jsonl": Format(".jsonl", "a JSON object a recording", of_all=json_lines, need_word_times=False),
    "srt": Format(".srt", "SubRip subtitles", of_one=srt),
    "vtt": Format(".vtt", "WebVTT subtitles", of_one=vtt),
    "ctm": Format(".ctm", "a line a word: recording, channel, start, duration, word, confidence", of_all=ctm),
    "textgrid": Format(".TextGrid", "Praat's interval tiers", of_one=textgrid),
}
FORMATS_HELP = "; ".join(f"{name} ({format.suffix}): {format.meaning}" for name, format in FORMATS.items())


def choose_format(name: str | None, output: Path | None, default: str | None = None) -> str | None:
    """A format by its name, else by the suffix of the file to write, else the default."""
    if name is not None or output is None:
        return name or default
    suffixes = {format.suffix.lower(): name for name, format in FORMATS.items()}
    return suffixes.get(output.suffix.lower(), default)


def refuse_to_overwrite(output: Path | None, inputs: Iterable[str | Path | None]) -> None:
    """Raise `InputError` where what is to be written is one of the files that are read."""
    if output is not None and any(
        Path(path).resolve() == output.resolve() for path in inputs if path is not None and Path(path).is_file()
    ):
        raise InputError(f"--output {output} is also read: choose another file.")


def check_destination(format_name: str, output: Path | None, ids: Sequence[str]) -> None:
    """Refuse, before anything is computed, what `write_transcripts` could not write.

    Raises:
        InputError: a file where a folder is needed or the other way round, or two recordings whose files would have one name.
    """
    format = FORMATS[format_name]
    if format.of_all is not None:
        if output is not None and output.is_dir():
            raise InputError(f"{output} is a folder; --output must name the {format_name} file to write.")
        return
    if output is None or _names_file(format, output):
        if len(ids) > 1:
            raise InputError(
                f"Each {format.suffix} file holds one recording, and there are {len(ids)}: give --output a folder, "
                f"and --output_format {format_name}."
            )
        return
    if output.is_file():
        raise InputError(
            f"{output} is a file, without the suffix {format.suffix}; --output must name a folder, or a file with it."
        )
    doubled = [name for name, count in Counter(_names_of_files(ids)).items() if count > 1]
    if doubled:
        raise InputError(f"Two recordings would be written to {output / doubled[0]}{format.suffix}; rename one.")


def makes_a_folder(format_name: str, output: Path | None) -> bool:
    """Whether `write_transcripts` writes a file for each recording into a folder, so that each can be written when it is done."""
    format = FORMATS[format_name]
    return output is not None and format.of_one is not None and not _names_file(format, output)


def write_transcripts(
    transcripts: Sequence[TimedTranscript],
    format_name: str,
    output: Path | None,
    names: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write to a file, to a folder, or, without an output, to stdout.

    For formats of one recording a file, an output with the format's suffix is a file, and any other a folder.

    Args:
        transcripts: of recordings.
        format_name: of `FORMATS`.
        output: a file or a folder.
        names: `file_names` of all recordings of the run; None: these are all.

    Returns:
        The files that were written.

    Raises:
        InputError: they cannot be written.
    """
    format = FORMATS[format_name]
    if output is None:
        render = format.of_all or (lambda every: "".join(map(format.of_one, every)))
        sys.stdout.write(render(transcripts))
        return []
    if format.of_all is not None:
        contents = {output: format.of_all(transcripts)}
    elif _names_file(format, output):
        contents = {output: format.of_one(transcripts[0])}
    else:
        names = file_names([transcript.id for transcript in transcripts]) if names is None else names
        contents = {
            output / f"{names[transcript.id]}{format.suffix}": format.of_one(transcript) for transcript in transcripts
        }
    for path, content in contents.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, content)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}.") from None
    return list(contents)


def _names_file(format: Format, output: Path) -> bool:
    return output.suffix.lower() == format.suffix.lower() and not output.is_dir()


def file_names(ids: Sequence[str]) -> dict[str, str]:
    """Recording -> what its file in a folder is called, without a suffix."""
    return dict(zip(ids, _names_of_files(ids), strict=True))


def _names_of_files(ids: Sequence[str]) -> list[str]:
    """`recording_names`, of which paths become names of files."""
    return [
        re.sub(r"[^\w.+-]+", "_", name).strip("_") if Path(name).name != name else name for name in recording_names(ids)
    ]
