"""The robustness evaluation's flags; a system's flags are read by the inference command's own parser."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lact_asr.command_line import program_name
from lact_asr.data.corruptions import KINDS, Condition, check_noise_source
from lact_asr.data.noise import COLOURS
from lact_asr.errors import InputError
from lact_asr.inference.arguments import parse_arguments as parse_inference_arguments
from lact_asr.inference.robustness.groups import Group
from lact_asr.shared_flags import add_dataset_type

DESCRIPTION = """Compare systems on recordings that differ from their training data.

A system is a name and flags of inference/hybrid_asr_inference.py (checkpoint, decoding, test-time training):

  --system "no TTT: --checkpoint M/best_model.pt" --system "entropy: --checkpoint M/best_model.pt --use_ttt --ttt_loss_type entropy"

The others are compared with the first, by the paired bootstrap. A condition is KIND or KIND:VALUE:

"""

SUMMARY_NAME = "summary.csv"
_RUN_FLAGS = (
    "audio_file", "audio_dir", "data_dir", "subset", "dataset_type", "max_samples", "output", "output_format", "word_times",
    "resume", "overwrite", "batch_size", "decoding_processes",
)  # fmt: skip


@dataclass(frozen=True)
class System:
    """What is evaluated: a name, the inference command's flags as they were given, and what its parser made of them."""

    name: str
    flags: str
    arguments: argparse.Namespace


def file_name(name: str) -> str:
    """A system's or condition's name with nothing in it that a file name cannot hold."""
    return re.sub(r"[^\w.+-]+", "_", name)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; ``system``, ``conditions``, ``average`` and ``groups`` become `System`, `Condition`, `Group`.

    Raises:
        InputError: flags that do not go together, an unknown condition, a system that its own parser refuses.
    """
    arguments = _parser().parse_args(argv)
    for name in ("max_samples", "batch_size"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise InputError(f"--{name} must be 1 or more, not {value}.")
    arguments.system = [_parse_system(text, arguments) for text in arguments.system]
    arguments.conditions = [Condition.parse(text) for text in arguments.conditions]
    arguments.average = [Condition.parse(text) for text in arguments.average]
    arguments.groups = [Group.parse(text) for text in arguments.groups]
    systems = [system.name for system in arguments.system]
    conditions = [condition.name for condition in arguments.conditions]
    _check_distinct("system", map(file_name, systems))
    _check_distinct("condition", conditions)
    _check_distinct("group", (group.name for group in arguments.groups))
    if missing := [condition.name for condition in arguments.average if condition.name not in conditions]:
        raise InputError(f"--average names {missing[0]}, which is not one of --conditions.")
    if not (arguments.resume or arguments.overwrite) and (arguments.output_dir / SUMMARY_NAME).exists():
        raise InputError(
            f"{arguments.output_dir} holds a report already: --resume goes on with it, --overwrite replaces it; or choose another --output_dir."
        )
    if arguments.baseline is None:
        arguments.baseline = systems[0]
    if arguments.baseline not in systems:
        raise InputError(f"--baseline {arguments.baseline!r} is no --system; there is {', '.join(systems)}.")
    check_noise_source(arguments.conditions, arguments.noise_dir, arguments.noise_colour)
    return arguments


def _parse_system(text: str, arguments: argparse.Namespace) -> System:
    name, colon, flags = (part.strip() for part in text.partition(":"))
    if not (name and colon):
        raise InputError(f'A system is written "NAME: FLAGS", not {text!r}.')
    try:
        words = shlex.split(flags)
    except ValueError as error:
        raise InputError(f"The flags of the system {name!r} cannot be split: {error}.") from None
    for word in words:
        flag = word.partition("=")[0]
        if len(flag) > 2 and any(f"--{refused}".startswith(flag) for refused in _RUN_FLAGS):
            raise InputError(f"The system {name!r} has {flag}, which is for all systems: give it outside of --system.")
    run = ["--data_dir", arguments.data_dir, "--subset", arguments.subset, "--dataset_type", arguments.dataset_type]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            parsed = parse_inference_arguments([*map(str, run), "--batch_size", str(arguments.batch_size), *words])
    except SystemExit:
        reason = said.getvalue().rpartition("error: ")[2].strip() or "they only ask for help"
        raise InputError(f"The flags of the system {name!r} cannot be used: {reason}.") from None
    except InputError as error:
        raise InputError(f"The flags of the system {name!r} cannot be used: {error}") from None
    return System(name, flags, parsed)


def _check_distinct(what: str, names: Iterable[str]) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise InputError(f"There are two of the {what} {name!r}; each needs a name of its own.")
        seen.add(name)


def _describe_kinds() -> str:
    return "\n".join(
        f"  {name + ('' if kind.default is None else f':{kind.default:g}'):<15} {kind.meaning}"
        for name, kind in KINDS.items()
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program_name("python -m lact_asr.inference.evaluate_robustness"),
        description=DESCRIPTION + _describe_kinds() + "\n\n(the values shown are the ones that a bare KIND takes).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="the corpus")
    parser.add_argument("--subset", required=True, help="its subset, or a manifest's name")
    add_dataset_type(parser)
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="where results, summary.csv, summary.json and report.html go"
    )
    parser.add_argument(
        "--system", action="append", required=True, metavar='"NAME: FLAGS"', help="once for each system"
    )
    parser.add_argument(
        "--baseline", default=None, metavar="NAME", help="compare with this system (default: the first)"
    )
    parser.add_argument("--conditions", nargs="+", default=["clean"], metavar="KIND[:VALUE]", help="default: clean")
    noise = parser.add_mutually_exclusive_group()
    noise.add_argument("--noise_dir", type=Path, default=None, help="folder of recordings for the condition noise")
    noise.add_argument("--noise_colour", choices=sorted(COLOURS), default=None, help="made noise instead")
    parser.add_argument(
        "--average", nargs="+", default=[], metavar="KIND[:VALUE]", help="also the mean over these of --conditions"
    )
    parser.add_argument(
        "--groups",
        nargs="+",
        default=[],
        metavar='"NAME: FIELD<=VALUE"',
        help='also tables of the utterances whose manifest lines say so, as "children: age<=13"; with <=, >=, <, > or ==',
    )
    parser.add_argument("--batch_size", type=int, default=16, help="results do not depend on it (default: %(default)s)")
    parser.add_argument(
        "--max_samples", type=int, default=None, help="so many utterances, spread evenly over the subset"
    )
    parser.add_argument(
        "--resample",
        choices=("utterance", "speaker"),
        default="utterance",
        help="what the bootstrap draws; by speaker, intervals also say what other speakers would change (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of corruptions and bootstrap (default: %(default)s)")
    parser.add_argument(
        "--resume", action="store_true", help="keep what an interrupted run wrote to --output_dir and go on"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the report that --output_dir holds, and its results"
    )
    return parser
