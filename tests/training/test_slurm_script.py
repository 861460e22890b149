"""configs/slurm/train.sbatch: what it starts, and when the job is put back into the queue. Slurm's commands are stand-ins.

Slurm is a service of a whole cluster; docs/training.md says what was tried with a real one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "configs" / "slurm" / "train.sbatch"
TWO_TASKS = """
while [[ $1 == --* ]]; do shift; done  # its own flags
SLURM_PROCID=1 SLURM_LOCALID=1 SLURM_NTASKS=2 "$@" &
SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=2 "$@" && wait $!
"""


@pytest.fixture
def run_job(tmp_path):
    """``run_job(flags, srun=, state=)``: the script with stand-ins; returns (exit code, output, whether it was requeued)."""

    def run(*flags: object, srun: str, state: str = "RUNNING") -> tuple[int, str, bool]:
        commands, requeued = tmp_path / "commands", tmp_path / "requeued"
        commands.mkdir(exist_ok=True)
        scontrol = f'case "$1 $2" in "show hostnames") echo localhost;; "requeue 77") touch {requeued};; esac'
        for name, body in {"srun": srun, "squeue": f"echo {state}", "scontrol": scontrol}.items():
            (commands / name).write_text(f"#!/bin/bash\n{body}\n")
            (commands / name).chmod(0o755)
        path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "localhost"}
        done = subprocess.run(
            ["bash", SCRIPT, *map(str, flags)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        return done.returncode, done.stdout + done.stderr, requeued.exists()

    return run


@pytest.mark.slow
def test_trains_in_as_many_processes_as_there_are_tasks(run_job, corpus_dir, write_config, tmp_path):
    flags = (
        "--config_path", write_config(tmp_path), "--data_dir", corpus_dir, "--train_subset", "train-generated",
        "--val_subset", "dev-generated", "--device", "cpu", "--lm_order", 0, "--max_steps", 2, "--output_dir", tmp_path / "run",
    )  # fmt: skip
    exit_code, output, requeued = run_job(*flags, srun=TWO_TASKS)
    assert (exit_code, requeued) == (0, False), output
    assert '"processes": 2' in (tmp_path / "run" / "run.json").read_text()
    assert (tmp_path / "run" / "checkpoint_00000002.pt").exists()


def test_a_job_array_is_refused(run_job, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "76")
    exit_code, output, requeued = run_job(srun="exit 143")
    assert (exit_code, requeued) == (2, False)
    assert "job array" in output


@pytest.mark.parametrize(
    ("exit_code", "state", "wanted"),
    [(143, "RUNNING", True), (143, "COMPLETING", False), (2, "RUNNING", False), (0, "RUNNING", False)],
    ids=["stopped", "cancelled", "failed", "finished"],
)
def test_only_a_job_that_was_stopped_goes_back_into_the_queue(run_job, exit_code, state, wanted):
    assert run_job(srun=f"exit {exit_code}", state=state)[::2] == (exit_code, wanted)
