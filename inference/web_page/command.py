"""A local web page that transcribes recordings without and with test-time training: ``lact-asr demo --help``."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace

from lact_asr.command_line import program_name
from lact_asr.errors import InputError, exit_on_input_error
from lact_asr.inference.arguments import parse_arguments as parse_inference_arguments
from lact_asr.shared_flags import add_checkpoint

DESCRIPTION = """A page in the browser: upload or record speech, and see its transcript without and with test-time training (TTT) side by
side, differing words marked, doubtful ones shaded, with the time that each took.

  lact-asr demo --checkpoint checkpoints/hybrid/best_model.pt --ttt_loss_type entropy

then open http://127.0.0.1:7860. All flags of decoding and TTT are those of `lact-asr transcribe`; lm.arpa beside the checkpoint is used
unless --greedy is given. Nothing leaves the computer. One recording is transcribed at a time, others wait."""


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Parse, load, serve until Ctrl-C; returns the exit code."""
    arguments, inference = parse_arguments(argv)
    # Imported after parsing: --help and mistyped flags answer at once.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        from lact_asr.inference.web_page.page import CSS, THEME, make_page
    except ModuleNotFoundError as error:
        raise InputError(f'The page needs {error.name}: pip install "lact-asr[web]".') from None
    from lact_asr.checkpoint import load_checkpoint
    from lact_asr.inference.inference_setup import describe_recogniser, fill_in_defaults, make_recogniser
    from lact_asr.inference.recogniser import Recogniser
    from lact_asr.inference.ttt.from_flags import describe_default_loss

    checkpoint = load_checkpoint(inference.checkpoint)
    filled = fill_in_defaults(inference, checkpoint.model.config)
    adapted = make_recogniser(filled, checkpoint)
    plain = Recogniser(replace(checkpoint, model=adapted.model), adapted.decoder, device=adapted.device)
    page = make_page(plain, adapted, describe_recogniser(filled), arguments.max_seconds)
    try:
        page.launch(
            server_name=arguments.host, server_port=arguments.port, css=CSS, theme=THEME, footer_links=[], ssr_mode=False,
            max_file_size=f"{arguments.max_megabytes}mb", quiet=True, prevent_thread_lock=True,
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"The page cannot be served on {arguments.host}:{arguments.port}: {error}") from None
    for note in describe_default_loss(inference, checkpoint.model.config):
        print(note, file=sys.stderr)
    print(f"Open {page.local_url} in a browser; Ctrl-C ends it.", flush=True)
    page.block_thread()
    return 0


def parse_arguments(argv: list[str] | None = None) -> tuple[argparse.Namespace, argparse.Namespace]:
    """The page's own flags, and those of recognition with test-time training.

    Raises:
        InputError: flags that do not go together.
    """
    parser = argparse.ArgumentParser(
        prog=program_name("python -m lact_asr.inference.web_page.command"),
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_checkpoint(parser)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other computers in (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    parser.add_argument(
        "--max_seconds", type=float, default=120.0, help="longest recording that is taken (default: %(default)g)"
    )
    parser.add_argument("--max_megabytes", type=int, default=50, help="largest upload (default: %(default)s)")
    arguments, rest = parser.parse_known_args(argv)
    taken = ["--checkpoint", arguments.checkpoint, "--use_ttt", "--audio_file", "upload"]
    return arguments, parse_inference_arguments([*taken, *rest])


if __name__ == "__main__":
    sys.exit(main())
