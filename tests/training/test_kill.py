"""A run that is killed at any moment (SIGKILL, which nothing can catch) and started again is, bit for bit, one that never was."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.kill_and_resume import values_by_name
from lact_asr.training.checkpoint_rotation import checkpoint_path, saved_checkpoints

SEED = 5
STEPS = 14
# Lines of the log, validations and ends of epochs fall between checkpoints, and everything draws at random.
FLAGS = (
    "--max_steps", STEPS, "--save_steps", 2, "--logging_steps", 3, "--eval_steps", 4, "--gradient_accumulation_steps", 2,
    "--optimizer", "muon", "--peak_lr", 5e-3, "--speed_factors", "0.9,1,1.1", "--num_workers", 2,
    "--resume_from_checkpoint", "auto",
)  # fmt: skip
MODEL = {
    "hidden_dropout": 0.2, "attention_dropout": 0.2, "layerdrop": 0.3, "mask_time_prob": 0.2, "mask_time_length": 4,
    "mask_feature_prob": 0.2, "mask_feature_length": 4, "enable_ttt": True, "ttt_mask_length": 4,
}  # fmt: skip


def test_killed_at_three_random_moments_is_bit_for_bit_never_killed(
    train, start_training, wait_for, corpus_dir, tmp_path
):
    flags = (*FLAGS, "--noise_dir", corpus_dir / "dev-generated")
    straight = train(*flags, name="straight", **MODEL)
    rng, folder = random.Random(SEED), tmp_path / "killed"
    for step in sorted(rng.sample(range(0, STEPS - 4, 2), 3)):
        process, delay = start_training(*flags, name="killed", **MODEL), rng.uniform(0, 0.1)
        if step > 0:
            wait_for(lambda step=step: saved_checkpoints(folder)[:1] >= [checkpoint_path(folder, step)], process)
        time.sleep(delay)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        print(f"seed {SEED}: killed {delay:.3f} s after the checkpoint of step {step}")
    newest = saved_checkpoints(folder)[0]
    time.sleep(1)  # TensorBoard puts files of one second in the order of their processes' numbers
    resumed = train(*flags, name="killed", **MODEL)
    assert f"Going on from {newest}, step" in resumed.out
    assert different(resumed.folder, straight.folder) == []
    assert scalars(resumed.folder) == scalars(straight.folder)


@pytest.mark.parametrize("receivers", ["the process", "the process and its workers"])
def test_sigterm_saves_within_seconds_while_workers_read(start_training, wait_for, tmp_path, receivers):
    """Batch systems and terminals signal workers, too."""
    log = tmp_path / "run" / "training_log.jsonl"
    process = start_training("--max_steps", 100_000, "--save_steps", 100_000, "--num_workers", 2)
    wait_for(lambda: log.exists() and log.stat().st_size > 0, process)
    if receivers == "the process and its workers":
        workers = children(process.pid)
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker, signal.SIGTERM)
    process.terminate()
    process.join(60)
    assert process.exitcode == 0  # the command has returned
    (checkpoint,) = saved_checkpoints(tmp_path / "run")
    assert checkpoint == checkpoint_path(tmp_path / "run", json.loads(log.read_text().splitlines()[-1])["step"])


@pytest.mark.slow
def test_two_processes_killed_are_bit_for_bit_never_killed(
    start_in_two_processes, train_in_two_processes, wait_for, write_config, corpus_dir, tmp_path
):
    """The one line of losses in the log is their mean over all steps and both processes."""
    config, folder = write_config(tmp_path, **MODEL), tmp_path / "killed"
    flags = (*FLAGS, "--noise_dir", corpus_dir / "dev-generated", "--num_workers", 0, "--logging_steps", STEPS)
    with start_in_two_processes(config, tmp_path, {"killed": flags}) as launched:
        wait_for(lambda: saved_checkpoints(folder)[:1] >= [checkpoint_path(folder, 4)], launched)
        for number in (launched.pid, *children(launched.pid)):
            os.kill(number, signal.SIGKILL)
    newest = saved_checkpoints(folder)[0]
    runs = train_in_two_processes(config, tmp_path, {"killed": flags, "straight": flags})
    assert f"Going on from {newest}, step" in runs["killed"].out
    assert different(folder, runs["straight"].folder) == []


@pytest.mark.slow
def test_sigterm_to_launcher_and_processes_at_once_saves(start_in_two_processes, wait_for, write_config, tmp_path):
    """As batch systems send it; the launcher then passes its own on, so that each process gets two."""
    config, folder = write_config(tmp_path), tmp_path / "stopped"
    flags = ("--max_steps", 100_000, "--save_steps", 100_000)
    with start_in_two_processes(config, tmp_path, {"stopped": flags}) as launched:
        log = folder / "training_log.jsonl"
        wait_for(lambda: log.exists() and log.stat().st_size > 0, launched)
        for number in (*children(launched.pid), launched.pid):
            os.kill(number, signal.SIGTERM)
        launched.communicate(timeout=60)
    (checkpoint,) = saved_checkpoints(folder)
    assert checkpoint > checkpoint_path(folder, 0)


@pytest.mark.slow
def test_no_process_leaves_while_the_main_one_is_still_saving(
    start_in_two_processes, wait_for, write_config, tmp_path, monkeypatch
):
    """A launcher ends the others with the first one that leaves after a signal."""
    monkeypatch.setenv("SECONDS_OF_A_SAVE", "2")
    config, folder = write_config(tmp_path), tmp_path / "stopped"
    flags = ("--max_steps", 100_000, "--save_steps", 100_000)
    with start_in_two_processes(config, tmp_path, {"stopped": flags}) as launched:
        log = folder / "training_log.jsonl"
        wait_for(lambda: log.exists() and log.stat().st_size > 0, launched)
        for number in children(launched.pid):
            os.kill(number, signal.SIGTERM)
        launched.communicate(timeout=60)
    assert len(saved_checkpoints(folder)) == 1


def children(process: int) -> list[int]:
    """Numbers of the processes that one has started."""
    return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))


def different(folder: Path, other: Path) -> list[str]:
    """Names of the values of log, checkpoint and best model that are not the same."""
    one, two = values_by_name(folder), values_by_name(other)
    return [name for name in one | two if one.get(name) != two.get(name)]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: name -> (step, value), but speeds."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    names = set(events.Tags()["scalars"]) - {"train/audio_seconds_per_second", "train/share_waiting_for_data"}
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}
