"""The console command ``lact-asr``: a name for each command of the package, and no other code behind it than theirs."""

from __future__ import annotations

import difflib
import importlib
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from lact_asr.errors import InputError, exit_on_input_error


@dataclass(frozen=True)
class Command:
    """A module whose ``main(argv)`` returns an exit code, and what it does."""

    module: str
    summary: str


COMMANDS = {
    "transcribe": Command("lact_asr.inference.hybrid_asr_inference", "transcribe recordings, or score a corpus subset"),
    "stream": Command("lact_asr.inference.transcribe_stream", "transcribe a microphone, or a file as if it were one"),
    "align": Command("lact_asr.inference.align", "find when each word of known transcripts was said"),
    "demo": Command("lact_asr.inference.web_page.command", "a web page: transcripts without and with adaptation"),
    "convert": Command("lact_asr.inference.convert_results", "write transcripts as subtitles, CTM, TextGrid or text"),
    "evaluate": Command("lact_asr.inference.evaluate_robustness", "compare systems on clean and corrupted recordings"),
    "train": Command("lact_asr.training.train_hybrid_asr", "train a model, or go on with a run"),
    "export": Command("lact_asr.inference.export_model", "turn a run into a folder for the hub, with a model card"),
    "statistics": Command(
        "lact_asr.inference.feature_statistics", "feature statistics for test-time training that aligns them"
    ),
    "lm build": Command("lact_asr.inference.build_language_model", "train a word n-gram model from transcripts"),
    "lm tune": Command("lact_asr.inference.tune_language_model", "choose a language model's weight on labelled data"),
    "lm measure": Command("lact_asr.inference.measure_language_model", "perplexity of a language model on transcripts"),
    "data download": Command("lact_asr.data.download", "fetch subsets of LibriSpeech"),
    "data check": Command("lact_asr.data.check_corpus", "look for what is wrong with a corpus"),
    "data generate": Command("lact_asr.data.generated_speech", "make a small corpus of synthetic voices"),
    "data noise": Command("lact_asr.data.noise", "write noisy copies of a subset"),
    "data shar": Command("lact_asr.data.make_shar", "pack a subset into few large files"),
    "sizes": Command("lact_asr.model_sizes", "what a configuration's model consists of"),
    "bench": Command("lact_asr.run_benchmark", "run a benchmark of this checkout"),
}

_started_as: ContextVar[str | None] = ContextVar("started_as", default=None)


def program_name(otherwise: str) -> str:
    """What a command's help calls it: its name under ``lact-asr`` where it was started so, and otherwise as given."""
    return _started_as.get() or otherwise


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] == "--version":
        print(_version())
        return 0
    for words in (1, 2):
        if (name := " ".join(argv[:words])) in COMMANDS:
            with _starting(f"lact-asr {name}"):
                return importlib.import_module(COMMANDS[name].module).main(argv[words:])
    given = list(itertools.takewhile(lambda word: not word.startswith("-"), argv[:2]))
    listed = {name: command for name, command in COMMANDS.items() if name.split()[: len(given)] == given}
    if not listed:
        nearest = difflib.get_close_matches(" ".join(given), COMMANDS, 1, cutoff=0.0)[0]
        raise InputError(
            f"lact-asr has no command {' '.join(given)!r}; the nearest is {nearest!r}, and lact-asr --help lists all."
        )
    if argv[len(given) :] not in ([], ["-h"], ["--help"]):
        raise InputError(f"lact-asr needs a command before {argv[len(given)]}; lact-asr --help lists them.")
    print(_help(listed))
    return 0


@contextmanager
def _starting(name: str) -> Iterator[None]:
    token = _started_as.set(name)
    try:
        yield
    finally:
        _started_as.reset(token)


def _help(listed: dict[str, Command]) -> str:
    width = max(map(len, listed))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in listed.items()]
    return "\n".join(
        [
            "usage: lact-asr COMMAND [flags], lact-asr COMMAND --help, lact-asr --version",
            "",
            "Speech recognition with test-time training.",
            "",
            *lines,
        ]
    )


def _version() -> str:
    from lact_asr.checkout import git_commit, installed_version

    commit = git_commit()
    return f"lact-asr {installed_version('lact-asr') or '(not installed)'}" + (f", commit {commit}" if commit else "")


if __name__ == "__main__":
    sys.exit(main())
