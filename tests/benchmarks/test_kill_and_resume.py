"""Killed again and again, a training loses nothing: the benchmark's own check with a few kills, and that it would notice a loss."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks import kill_and_resume
from lact_asr.checkpoint import BEST_MODEL
from lact_asr.training.checkpoint_rotation import checkpoint_path
from lact_asr.training.training_state import FORMAT

ROOT = Path(__file__).resolve().parents[2]


def test_ten_kills_lose_nothing(tmp_path):
    command = [sys.executable, "-m", "benchmarks.kill_and_resume", "--kills", "10", "--output_dir", str(tmp_path)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    result = json.loads((tmp_path / "kill_and_resume.json").read_text())
    assert result["kills"] == sum(result["moments"].values()) == 10
    assert set(result["moments"]) == set(kill_and_resume.MOMENTS)
    assert result["unfinished_checkpoints"] >= 1
    assert (result["lost"], result["differences"]) == ([], [])
    assert result["values"] > 1_000
    assert "resumed      10;" in finished.stdout


def test_plans_are_repeatable_and_hold_all_kinds_of_moments():
    plan = kill_and_resume.plan_kills(100, seed=3)
    assert plan == kill_and_resume.plan_kills(100, seed=3) != kill_and_resume.plan_kills(100, seed=4)
    assert all(sum(kill.moment == moment for kill in plan) in (33, 34) for moment in kill_and_resume.MOMENTS)
    assert [kill.step for kill in plan] == sorted(kill.step for kill in plan)


def test_a_run_that_starts_from_scratch_instead_of_its_checkpoint_is_a_loss(tmp_path):
    """A process that only sleeps stands for it; the log and the checkpoint are what such a run would leave."""
    training = object.__new__(kill_and_resume.Training)
    training.folder, training.started, training.resumed_from, training.leftovers = tmp_path, time.time() - 1, 4, set()
    training.process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    training.process.start()
    line = {"event": "train", "step": 1, "time": time.time()}
    (tmp_path / "training_log.jsonl").write_text(json.dumps(line) + "\n")
    plan = kill_and_resume.PlannedKill(kill_and_resume.STEPPING, step=1, share=0.0)
    kill = kill_and_resume.kill_as_planned(training, plan, start_seconds=0.0, step_seconds=0.0)
    assert kill.lost == "the process started with step 1 instead of 5"


def test_one_bit_is_a_difference(tmp_path):
    for name, value in (("one", 1.0), ("same", 1.0), ("other", 1.0 + 2**-23)):
        folder = tmp_path / name
        folder.mkdir()
        line = {"event": "train", "step": 2, "time": time.time(), "ctc_loss": 0.5}
        (folder / "training_log.jsonl").write_text(json.dumps(line) + "\n")
        state = {"format": FORMAT, "model": {"weight": torch.tensor([value])}, "random": [(3, (1, 2))]}
        torch.save(state, checkpoint_path(folder, 2))
        torch.save({"model": {"weight": torch.ones(2)}}, folder / BEST_MODEL)
    one, same, other = (kill_and_resume.values_by_name(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same
    assert [name for name in one if one[name] != other[name]] == ["/checkpoint/model/weight"]
    assert "/log/0/ctc_loss" in one
    assert "/log/0/time" not in one
