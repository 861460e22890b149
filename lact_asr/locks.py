"""One process at a time writes a file or a folder; the second is told so.

Locks are POSIX record locks: the system lets go of them when the process ends, however it ends. (Those of filelock are inherited by forked
workers, which outlive a killed run by seconds, in which it could not be started again.) Windows has none of them, and nothing is locked there;
neither have some file systems, where a warning says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lact_asr.errors import InputError, warn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# What Lustre without -o flock, NFS without its lock daemon and some file systems in user space answer.
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})
_warned_of: set[int] = set()  # file systems


def open_alone(path: Path) -> BinaryIO:
    """Open a file to read it and to append to it; until it is closed, no other process gets it from this function.

    It is made if it is not there. Where the file system has no locks, every process gets it, and is warned once. The lock goes with the first descriptor of the file that this process closes, so read it through this one.

    Raises:
        InputError: another process has it.
        OSError: it cannot be opened.
    """
    while True:
        file = path.open("a+b")
        try:
            _lock(file, path)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except (BlockingIOError, PermissionError):
            file.close()
            raise InputError(f"another process is writing {path}: wait for it, or choose another place") from None
        except FileNotFoundError:  # the one that had it has removed it
            pass
        file.close()


def _lock(file: BinaryIO, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        file_system = os.fstat(file.fileno()).st_dev
        if file_system not in _warned_of:
            _warned_of.add(file_system)
            warn(
                f"the file system of {path.parent} has no locks: start no second run that writes there, nothing would stop it."
            )


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """A block that no other process enters for the same folder; a file `.lock` in the folder serves for that, until the block ends.

    Raises:
        InputError: another process is in it, or the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open_alone(folder / ".lock")
    except InputError:
        raise InputError(f"another run is writing to {folder}: wait for it, or choose another folder") from None
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder} is not a folder") from None
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error.strerror}") from None
    with lock:
        try:
            yield
        finally:
            (folder / ".lock").unlink(missing_ok=True)
