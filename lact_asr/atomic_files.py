"""Files that are whole or not there: written to a temporary name and renamed."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``; what the block writes there takes its place at the end, or is deleted where the block fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write indented JSON; what JSON does not know (paths) becomes its text.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as it is, line ends included.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a header and rows, of which each column is a key.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
        ValueError: a row has other keys.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
