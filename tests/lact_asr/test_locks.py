"""Two processes that write to one place: the first goes on, the second gets one sentence, and a killed one leaves nothing locked."""

from __future__ import annotations

import errno
import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest

from lact_asr import locks
from lact_asr.errors import InputError
from lact_asr.locks import alone_in, open_alone

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no record locks")


def _hold(path: Path, ready: multiprocessing.Event) -> None:
    """Keep a file, or the folder that a path names, and have a child that outlives this process by a second."""
    lock = alone_in(path) if path.is_dir() else open_alone(path)
    with lock:
        if os.fork() == 0:
            time.sleep(1)
            os._exit(0)
        ready.set()
        time.sleep(60)


@pytest.fixture
def hold():
    """Start a process that holds a path; all are killed at the end."""
    context, processes = multiprocessing.get_context("spawn"), []

    def start(path: Path) -> multiprocessing.Process:
        ready = context.Event()
        processes.append(context.Process(target=_hold, args=(path, ready)))
        processes[-1].start()
        assert ready.wait(60)
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.join()


def test_a_file_is_for_one_process_until_that_is_killed(tmp_path, hold):
    path = tmp_path / "results.jsonl"
    path.write_text("kept")
    holder = hold(path)
    with pytest.raises(InputError, match=r"another process is writing .*results\.jsonl: wait for it"):
        open_alone(path)
    holder.kill()
    holder.join()
    with open_alone(path) as file:  # though the killed one's child, which inherited the file, is still there
        file.seek(0)
        assert file.read() == b"kept"


def test_a_folder_is_for_one_process(tmp_path, hold):
    holder = hold(tmp_path)
    with pytest.raises(InputError, match=f"another run is writing to {tmp_path}: wait for it"), alone_in(tmp_path):
        pass
    holder.kill()
    holder.join()
    with alone_in(tmp_path):
        pass


def test_a_file_that_was_removed_meanwhile_is_made_anew(tmp_path, monkeypatch):
    """As between the opening and the locking by another process."""
    path, removed = tmp_path / "results.jsonl", []
    open_file = Path.open

    def open_and_remove(self, *arguments, **options):
        file = open_file(self, *arguments, **options)
        if not removed:
            removed.append(self.unlink())
        return file

    monkeypatch.setattr(Path, "open", open_and_remove)
    with open_alone(path) as file:
        file.write(b"not lost")
    assert path.read_bytes() == b"not lost"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder"), alone_in(tmp_path / "file" / "run"):
        pass


@pytest.mark.parametrize("reason", ["ENOSYS", "ENOLCK", "ENOTSUP", "EOPNOTSUPP"])
def test_without_locks_on_the_file_system_a_run_goes_on_and_says_so_once(tmp_path, monkeypatch, capsys, reason):
    """As on Lustre without -o flock and NFS without its lock daemon."""

    def refuse(*_):
        raise OSError(getattr(errno, reason), "no locks here")

    monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    monkeypatch.setattr(locks, "_warned_of", set())
    with alone_in(tmp_path), open_alone(tmp_path / "results.jsonl") as file:
        file.write(b"written")
    assert (tmp_path / "results.jsonl").read_bytes() == b"written"
    assert capsys.readouterr().err == (
        f"warning: the file system of {tmp_path} has no locks: start no second run that writes there, nothing would stop it.\n"
    )
