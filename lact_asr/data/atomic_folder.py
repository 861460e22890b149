"""A folder that appears only when it is complete."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lact_asr.errors import InputError


@contextlib.contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Give a new folder beside `target` that takes its place when the block ends without an exception.

    Args:
        target: Where the folder shall be; what is there now is deleted, but only then. Missing parents are made.

    Yields:
        The empty folder to fill. After an exception nothing of it remains, and `target` is as it was.

    Raises:
        InputError: The parent folder cannot be made or written to.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".tmp", dir=target.parent))
    except OSError as error:
        raise InputError(f"cannot write in {target.parent}: {error.strerror}") from error
    try:
        new, old = work / "new", work / "old"  # inside `work`, whose own permissions mkdtemp narrows
        new.mkdir()
        yield new
        if target.exists():
            os.replace(target, old)
        os.replace(new, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
