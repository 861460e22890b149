"""Killed again and again, a training loses nothing: the benchmark's own check with a few kills, and that it would notice a loss."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import kill_and_resume

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
