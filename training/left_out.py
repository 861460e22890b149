"""``left_out.json`` of a run: every utterance that is not trained on or scored, with the reason."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from lact_asr.atomic_files import write_json
from lact_asr.data.corpora import Corpus
from lact_asr.data.corpus_listings import Problem

NAME = "left_out.json"


def write_left_out(folder: Path, corpora: Iterable[Corpus]) -> None:
    """At a start: what listing the corpora has left out (`Corpus.report` prints only the first names).

    What an earlier start of the run found while training stays.
    """
    found_in_training = [row for row in _rows(folder) if "step" in row]
    write_json(folder / NAME, [*(_row(p) for corpus in corpora for p in corpus.problems), *found_in_training])


def add_left_out(folder: Path, problems: Iterable[Problem], step: int) -> None:
    """While training: recordings that could not be read; each once, with the first step that knew it."""
    rows = _rows(folder)
    known = {row["name"] for row in rows}
    new = {problem.name: {**_row(problem), "step": step} for problem in problems if problem.name not in known}
    if new:
        write_json(folder / NAME, [*rows, *new.values()])


def _row(problem: Problem) -> dict:
    return {"name": problem.name, "kind": problem.kind, "reason": problem.sentence}


def _rows(folder: Path) -> list[dict]:
    with contextlib.suppress(OSError, ValueError):  # none yet
        return json.loads((folder / NAME).read_text(encoding="utf-8"))
    return []
