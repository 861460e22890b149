"""The training states of a run's folder: named by their steps, the last few kept, and the newest one that can be read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate.utils import gather_object

from lact_asr.checkpoint import FileNotReadNow
from lact_asr.errors import InputError, warn
from lact_asr.training.training_state import load_training_state


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the state after an optimiser step lies; names sort as steps do."""
    return folder / f"checkpoint_{step:08d}.pt"


def saved_checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob(f"checkpoint_{'[0-9]' * 8}.pt"), reverse=True)


def rotate_checkpoints(newest: Path, keep: int) -> None:
    """Keep a checkpoint that was just written and those before it, ``keep`` in all.

    Those of later steps are put aside: the run went on from before them because they could not be read.
    """
    saved = saved_checkpoints(newest.parent)
    for path in [path for path in saved if path.name <= newest.name][keep:]:
        path.unlink(missing_ok=True)
    for path in (path for path in saved if path.name > newest.name):
        path.replace(path.with_name(f"{path.name}.unreadable"))


def make_room(unwritten: Path) -> bool:
    """On a full disk, give up all but the newest checkpoint that can be read; whether that deleted any.

    Args:
        unwritten: what there was no room for; later ones are not touched.
    """
    before = [path for path in saved_checkpoints(unwritten.parent) if path.name <= unwritten.name]
    if len(before) < 2:
        return False
    try:
        kept, _ = load_newest_readable(before, warn)
    except InputError:  # none can be read, or not at the moment: then none is given up
        return False
    for path in before:
        if path != kept:
            path.unlink(missing_ok=True)
    return True


def delete_unfinished_files(folder: Path) -> None:
    """What a killed run was writing: temporary names that nobody will rename any more."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def checkpoints_to_resume_from(wanted: str | None, output_dir: Path) -> list[Path]:
    """What ``--resume_from_checkpoint`` stands for.

    Args:
        wanted: None (start from scratch), ``last`` (the newest of the output folder), ``auto`` (likewise, but start from
            scratch if there is none), a file, or a run's folder.
        output_dir: of the run.

    Returns:
        The newest first, the others in case it cannot be read; none to start from scratch.

    Raises:
        InputError: there is none, or the run would not go on from the newest one of its own folder, and so lose it.
    """
    own = saved_checkpoints(output_dir)
    if wanted == "auto":
        return own
    paths = [] if wanted is None else _checkpoints_at(output_dir if wanted == "last" else Path(wanted))
    if own and [path.resolve() for path in paths[:1]] != [own[0].resolve()]:
        raise InputError(
            f"{output_dir} holds a run already, up to {own[0].name}: go on with it by --resume_from_checkpoint, or give "
            "another --output_dir."
        )
    return paths


def _checkpoints_at(path: Path) -> list[Path]:
    """Those of a folder, or the file itself."""
    paths = saved_checkpoints(path) if path.is_dir() else [path]
    if not paths or not paths[0].is_file():
        raise InputError(f"There is no training state to resume from at {path}.")
    return paths


def agreed_by_all(find: Callable[[], list[Path]]) -> list[Path]:
    """The checkpoints that every process finds; each must call this.

    Raises:
        InputError: of the first process that meets one, on all of them; or they find different ones.
    """
    try:
        paths, refusal = find(), None
    except InputError as error:
        paths, refusal = [], str(error)
    found = gather_object([(refusal, [path.name for path in paths])])
    if refusals := [refusal for refusal, _ in found if refusal]:
        raise InputError(refusals[0])
    if any(names != found[0][1] for _, names in found):
        raise InputError("The processes see different checkpoints; do all machines share the output folder?")
    return paths


def load_newest_readable_by_all(paths: Sequence[Path], report: Callable[[str], None]) -> tuple[Path, dict]:
    """The first training state that every process can read; each must call this, with the same paths in this order.

    Args and errors as of `load_newest_readable`; ``report`` gets the sentences of all processes.
    """
    paths, sentences = list(paths), []
    while True:
        path, content = load_newest_readable(paths, sentences.append)
        found = gather_object([(paths.index(path), sentences)])
        oldest = max(index for index, _ in found)
        if all(index == oldest for index, _ in found):
            for sentence in dict.fromkeys(sentence for _, of_one in found for sentence in of_one):
                report(sentence)
            return path, content
        paths = paths[oldest:]


def load_newest_readable(paths: Sequence[Path], report: Callable[[str], None]) -> tuple[Path, dict]:
    """The first training state that can be read, with its path.

    Args:
        paths: newest first, at least one.
        report: is given one sentence for each that cannot be read.

    Raises:
        InputError: of the last, if none can be read.
        FileNotReadNow: of one that may well be sound; going on from an older one would lose its steps.
    """
    for path, before in itertools.pairwise(paths):
        try:
            return path, load_training_state(path)
        except FileNotReadNow:
            raise
        except InputError as error:
            report(f"{str(error).rstrip('.')}; going on from the one before it, {before.name}.")
    return paths[-1], load_training_state(paths[-1])
