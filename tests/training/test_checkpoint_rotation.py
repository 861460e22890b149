"""Which checkpoints stay, which one a run goes on from, and what happens where one cannot be read or written."""

from __future__ import annotations

import contextlib
import errno
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.kill_and_resume import values_by_name
from lact_asr.checkpoint import save_file_atomically
from lact_asr.errors import InputError
from lact_asr.training import trainer
from lact_asr.training.checkpoint_rotation import (
    agreed_by_all,
    checkpoint_path,
    checkpoints_to_resume_from,
    delete_unfinished_files,
    load_newest_readable,
    load_newest_readable_by_all,
    make_room,
    rotate_checkpoints,
    saved_checkpoints,
)
from lact_asr.training.trainer import Trainer
from lact_asr.training.training_state import FORMAT


@contextlib.contextmanager
def room_for(size_bytes: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond a size, in the middle of writing, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save(folder: Path, *steps: int) -> list[Path]:
    """Checkpoints with nothing but their step and some weights in them, newest first."""
    for step in steps:
        content = {"format": FORMAT, "progress": {"step": step}, "model": {"weight": torch.full((1_000,), float(step))}}
        save_file_atomically(content, checkpoint_path(folder, step))
    return saved_checkpoints(folder)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2_000])


def flip_a_bit_of_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((9,), 6.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)


def no_training_state(path: Path) -> None:
    torch.save({"format": "something else"}, path)


def test_names_sort_as_steps(tmp_path):
    assert [path.name for path in save(tmp_path, 9, 100, 20)] == [
        "checkpoint_00000100.pt", "checkpoint_00000020.pt", "checkpoint_00000009.pt",
    ]  # fmt: skip


@pytest.mark.parametrize(("keep", "kept"), [(1, [4]), (2, [4, 2]), (9, [4, 2, 1])])
def test_rotation_keeps_the_newest_and_puts_those_of_a_branch_that_was_left_aside(tmp_path, keep, kept):
    newest, *_ = save(tmp_path, 1, 2, 4, 6)
    rotate_checkpoints(checkpoint_path(tmp_path, 4), keep)
    assert newest.with_name(f"{newest.name}.unreadable").exists()
    assert saved_checkpoints(tmp_path) == [checkpoint_path(tmp_path, step) for step in kept]


def test_unfinished_files_are_deleted_and_nothing_else(tmp_path):
    save(tmp_path, 2)
    (tmp_path / ".checkpoint_00000004.pt.123.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").touch()
    delete_unfinished_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint_00000002.pt", "notes.txt"}


@pytest.mark.parametrize("damage", [truncate, flip_a_bit_of_a_weight, no_training_state, Path.unlink])
def test_the_one_before_stands_in_for_an_unreadable_one_with_one_sentence(tmp_path, damage):
    paths, sentences = save(tmp_path, 2, 4, 6), []
    damage(paths[0])
    path, content = load_newest_readable(paths, sentences.append)
    assert path == paths[1]
    assert content["progress"]["step"] == 4
    (sentence,) = sentences
    assert "checkpoint_00000006.pt" in sentence
    assert sentence.endswith("; going on from the one before it, checkpoint_00000004.pt.")


def test_a_file_system_that_fails_is_no_damage(tmp_path, monkeypatch):
    paths = save(tmp_path, 4, 6)

    def stale(*_, **__):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("lact_asr.checkpoint.torch.load", stale)
    with pytest.raises(InputError, match=r"checkpoint_00000006\.pt could not be read \(Stale file handle\): try again"):
        load_newest_readable(paths, lambda sentence: None)


def test_processes_that_see_different_checkpoints_are_told_so(tmp_path, monkeypatch):
    paths = save(tmp_path, 4, 6)
    others: list[tuple] = []
    monkeypatch.setattr("lact_asr.training.checkpoint_rotation.gather_object", lambda own: own + others)
    assert agreed_by_all(lambda: paths) == paths
    others.append((None, [path.name for path in paths]))
    assert agreed_by_all(lambda: paths) == paths
    others.append((None, []))  # a machine whose output folder is its own
    with pytest.raises(InputError, match="do all machines share the output folder"):
        agreed_by_all(lambda: paths)
    others[-1] = ("There is no training state to resume from at X.", [])
    with pytest.raises(InputError, match="no training state to resume from at X"):
        agreed_by_all(lambda: paths)


def test_all_processes_go_on_from_the_newest_that_each_can_read(tmp_path, monkeypatch):
    paths, sentences = save(tmp_path, 2, 4, 6), []
    of_another = [(1, ["It is damaged."]), (0, ["It is damaged."])]  # its own place in what is left, twice asked
    monkeypatch.setattr("lact_asr.training.checkpoint_rotation.gather_object", lambda own: [*own, of_another.pop(0)])
    path, content = load_newest_readable_by_all(paths, sentences.append)
    assert path == paths[1]
    assert content["progress"]["step"] == 4
    assert sentences == ["It is damaged."]


def test_room_is_made_by_all_but_the_newest_readable_checkpoint(tmp_path):
    paths = save(tmp_path, 2, 4, 6)
    truncate(paths[0])
    assert make_room(checkpoint_path(tmp_path, 8))
    assert saved_checkpoints(tmp_path) == [paths[1]]
    assert not make_room(checkpoint_path(tmp_path, 8))  # the last one stays
    assert saved_checkpoints(tmp_path) == [paths[1]]


def test_no_room_is_made_where_no_checkpoint_can_be_read(tmp_path):
    paths = save(tmp_path, 2, 4)
    for path in paths:
        truncate(path)
    assert not make_room(checkpoint_path(tmp_path, 6))
    assert saved_checkpoints(tmp_path) == paths


def test_nothing_readable_is_refused(tmp_path):
    paths = save(tmp_path, 4, 6)
    for path in paths:
        truncate(path)
    with pytest.raises(InputError, match=r"checkpoint_00000004\.pt is"):
        load_newest_readable(paths, lambda sentence: None)


def test_what_to_resume_from(tmp_path):
    run, other, empty = (tmp_path / name for name in ("run", "other", "empty"))
    empty.mkdir()
    newest, oldest = save(run, 2, 4)
    (elsewhere,) = save(other, 9)
    for wanted, expected in {"auto": [newest, oldest], "last": [newest, oldest], str(run): [newest, oldest], str(newest): [newest]}.items():  # fmt: skip
        assert checkpoints_to_resume_from(wanted, run) == expected
    assert checkpoints_to_resume_from("auto", empty) == checkpoints_to_resume_from(None, empty) == []
    assert checkpoints_to_resume_from("auto", tmp_path / "not there") == []
    assert checkpoints_to_resume_from(str(other), empty) == checkpoints_to_resume_from(str(elsewhere), empty) == [elsewhere]  # fmt: skip
    for wanted in ("last", str(empty), str(tmp_path / "none.pt")):
        with pytest.raises(InputError, match="no training state"):
            checkpoints_to_resume_from(wanted, empty)
    for wanted in (None, str(oldest), str(other), str(elsewhere)):
        with pytest.raises(InputError, match=r"holds a run already, up to checkpoint_00000004\.pt"):
            checkpoints_to_resume_from(wanted, run)


def test_a_run_falls_back_from_a_damaged_checkpoint_and_ends_as_if_nothing_had_happened(finished_run, train, tmp_path):
    flags = ("--max_epochs", 2, "--warmup_steps", 4, "--enable_ttt", "--lm_order", 3)
    shutil.copytree(finished_run.folder, tmp_path / "run")
    truncate(tmp_path / "run" / "checkpoint_00000010.pt")
    run = train(*flags, "--resume_from_checkpoint", "--keep_checkpoints", 1)
    assert "going on from the one before it, checkpoint_00000008.pt" in run.out
    assert run.exit_code == 0
    assert [event["step"] for event in run.events("train")] == list(range(1, 11))
    assert [path.name for path in saved_checkpoints(run.folder)] == ["checkpoint_00000010.pt"]
    assert all(torch.equal(value, finished_run.state()["model"][name]) for name, value in run.state()["model"].items())


def test_a_new_run_does_not_overwrite_another(finished_run, train, tmp_path):
    shutil.copytree(finished_run.folder, tmp_path / "run")
    run = train("--max_steps", 1, "--enable_ttt")
    assert run.exit_code == 2
    assert run.err == (
        f"error: {run.folder} holds a run already, up to checkpoint_00000010.pt: go on with it by --resume_from_checkpoint, "
        "or give another --output_dir.\n"
    )
    assert run.log() == finished_run.log()


def test_a_disk_with_room_for_two_checkpoints_gives_up_the_older_one(train, monkeypatch):
    write = trainer.save_training_state

    def save_training_state(path: Path, **state) -> None:
        if len(saved_checkpoints(path.parent)) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, **state)

    monkeypatch.setattr(trainer, "save_training_state", save_training_state)
    run = train("--max_steps", 5, "--save_steps", 1, "--keep_checkpoints", 2, "--eval_steps", 100)
    assert run.exit_code == 0
    assert saved_checkpoints(run.folder) == [
        checkpoint_path(run.folder, 5)
    ]  # written twice: at the step, and at the end
    assert run.state()["progress"]["step"] == 5


def test_a_run_outlives_a_full_disk(train, monkeypatch):
    """After the first checkpoint there is no room for another, nor for the best model; with room again, nothing is missing."""
    flags = ("--save_steps", 2, "--eval_steps", 3, "--max_steps", 7, "--resume_from_checkpoint", "auto")
    straight = train(*flags, name="straight")
    with contextlib.ExitStack() as full_disk, monkeypatch.context() as patch:
        save_state = Trainer.save_state

        def fill_the_disk_after_it(self):
            save_state(self)
            full_disk.enter_context(room_for(50_000))

        patch.setattr(Trainer, "save_state", fill_the_disk_after_it)
        full = train(*flags)
    assert full.exit_code == 2
    for what in ("the checkpoint of step 4", "the checkpoint of step 6", "best_model.pt of step 3"):
        assert f"warning: {what} could not be written (File too large); training goes on." in full.err
    assert "cannot be written to (File too large)" in full.err.splitlines()[-1]
    assert saved_checkpoints(full.folder) == [checkpoint_path(full.folder, 2)]
    assert not list(full.folder.glob(".*.tmp"))
    resumed = train(*flags)
    assert resumed.exit_code == 0
    assert "step 2 of 7" in resumed.out
    assert values_by_name(resumed.folder) == values_by_name(straight.folder)


def test_a_start_without_any_room_says_so(train):
    with room_for(1_000):
        run = train("--max_steps", 1)
    assert run.exit_code == 2
    assert "cannot be written to (File too large)" in run.err.splitlines()[-1]
