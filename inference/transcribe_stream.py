"""Transcribe a microphone, or a file as if it were one, while it goes on: ``python -m lact_asr.inference.transcribe_stream --help``."""

from __future__ import annotations

import argparse
import queue
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lact_asr.command_line import program_name
from lact_asr.errors import InputError, exit_on_input_error
from lact_asr.inference.arguments import parse_arguments as parse_inference_arguments
from lact_asr.sample_rate import SAMPLE_RATE_HZ
from lact_asr.shared_flags import add_checkpoint

if TYPE_CHECKING:
    from lact_asr.inference.streaming import StreamingTranscriber, StreamUpdate

PORTION_SECONDS = 0.1


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Print final words as they come, on stderr those that may still change; Ctrl-C ends a microphone's stream."""
    options = _parse(argv)
    portions = _microphone() if options.microphone else _file(options.audio_file, options.real_time)
    first = next(portions)  # a bad file or no microphone is said before the model is loaded
    transcriber = _transcriber(options)
    _show(transcriber.feed(first))
    try:
        for portion in portions:
            _show(transcriber.feed(portion))
    except KeyboardInterrupt:
        pass
    _show(transcriber.finish())
    print(
        f"\n{transcriber.audio_seconds:.1f} s of audio; a word is decoded at most {transcriber.latency_seconds:.2f} s of audio "
        f"after it was said; real-time factor {transcriber.real_time_factor:.3f}.",
        file=sys.stderr,
    )
    return 0


def _transcriber(options: argparse.Namespace) -> StreamingTranscriber:
    from lact_asr.checkpoint import load_hybrid_checkpoint
    from lact_asr.inference.inference_setup import fill_in_defaults, make_recogniser
    from lact_asr.inference.streaming import StreamingTranscriber

    checkpoint = load_hybrid_checkpoint(options.checkpoint)
    flags = ["--checkpoint", options.checkpoint, "--audio_file", "-", "--beam_size", str(options.beam_size)]
    flags += ["--device", options.device, *(["--greedy"] if options.greedy else ["--lm_path", options.lm_path])]
    recogniser = make_recogniser(
        fill_in_defaults(parse_inference_arguments(flags), checkpoint.model.config), checkpoint
    )
    return StreamingTranscriber(
        recogniser.model,
        recogniser.processor,
        recogniser.decoder,
        chunk_frames=options.chunk_frames,
        window_frames=options.window_frames,
        block_seconds=options.block_seconds,
        endpoint_seconds=options.endpoint_seconds,
    )


def _file(path: Path, real_time: bool) -> Iterator[np.ndarray]:
    """A recording in portions, as fast as they are taken or as fast as they were said."""
    from lact_asr.audio import audio_blocks

    started, heard = time.monotonic(), 0.0
    for portion in audio_blocks(path, PORTION_SECONDS):
        heard += len(portion) / SAMPLE_RATE_HZ
        if real_time:
            time.sleep(max(0.0, started + heard - time.monotonic()))
        yield portion


def _microphone() -> Iterator[np.ndarray]:
    """The default input device in portions, until Ctrl-C."""
    try:
        import sounddevice
    except ImportError:
        raise InputError("--microphone needs the package sounddevice: pip install 'lact-asr[microphone]'") from None
    except OSError as error:
        raise InputError(f"--microphone cannot be used: {error}.") from None
    portions: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
    try:
        with sounddevice.InputStream(
            samplerate=SAMPLE_RATE_HZ, channels=1, blocksize=round(PORTION_SECONDS * SAMPLE_RATE_HZ),
            callback=lambda samples, *_: portions.put(samples[:, 0].copy()),
        ):  # fmt: skip
            while True:
                yield portions.get()
    except sounddevice.PortAudioError as error:
        raise InputError(f"no microphone can be opened at 16 kHz: {error}.") from None


def _show(update: StreamUpdate) -> None:
    """Final words go to stdout, a line for each pause; the line of partial words on a terminal is written over."""
    if update.final:
        _write_over("")
        print(" ".join(word.text for word in update.final), flush=True)
    _write_over(" ".join(word.text for word in update.partial))


def _write_over(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program_name("python -m lact_asr.inference.transcribe_stream"),
        description="Transcribe a microphone, or a file as if it were one, while it goes on. Final words go to stdout, words that may "
        "still change to the terminal; what streaming costs in accuracy: docs/streaming.md.",
    )
    add_checkpoint(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--microphone", action="store_true", help="the default input device, until Ctrl-C")
    source.add_argument("--audio_file", type=Path, help="a recording, fed in portions of 0.1 s")
    parser.add_argument("--real_time", action="store_true", help="feed the file as slowly as it was spoken")
    parser.add_argument(
        "--chunk_frames",
        type=int,
        default=None,
        help="frames that the fast weights learn from at a time (default: the model's chunk, else two seconds)",
    )
    parser.add_argument(
        "--window_frames", type=int, default=None, help="attention window, centred (default: the model's)"
    )
    parser.add_argument("--block_seconds", type=float, default=0.2, help="computed at once (default: %(default)s)")
    parser.add_argument(
        "--endpoint_seconds", type=float, default=0.6, help="a pause that makes words final (default: %(default)s)"
    )
    parser.add_argument("--greedy", action="store_true", help="no beams, no language model, for final words either")
    parser.add_argument("--beam_size", type=int, default=20, help="of final words (default: %(default)s)")
    parser.add_argument(
        "--lm_path", default="auto", help="ARPA or KenLM binary, or none (default: lm.arpa beside the checkpoint)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
