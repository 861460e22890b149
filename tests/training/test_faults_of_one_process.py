"""Two processes of which one cannot read what the other can: both must go the same way, or none."""

from __future__ import annotations

import pytest
import torch

FLAGS = ("--save_steps", 2, "--eval_steps", 100, "--lm_order", 0)


@pytest.mark.slow
def test_other_data_on_one_process_is_refused(start_in_two_processes, write_config, tmp_path, monkeypatch):
    monkeypatch.setenv("FAULT_OF_SECOND_PROCESS", "header")
    with start_in_two_processes(write_config(tmp_path), tmp_path, {"run": ("--max_steps", 4, *FLAGS)}) as launched:
        _, err = launched.communicate(timeout=300)
    assert launched.returncode != 0
    assert "The processes see different training data" in err
    assert not (tmp_path / "run" / "training_log.jsonl").exists()


@pytest.mark.slow
def test_a_checkpoint_that_one_process_cannot_read_is_left_by_all(
    train_in_two_processes, write_config, tmp_path, monkeypatch
):
    config = write_config(tmp_path)
    trainings = {"whole": ("--max_steps", 6, *FLAGS), "resumed": ("--max_steps", 4, *FLAGS)}
    runs = train_in_two_processes(config, tmp_path, trainings)
    monkeypatch.setenv("FAULT_OF_SECOND_PROCESS", "checkpoint")
    flags = ("--max_steps", 6, *FLAGS, "--resume_from_checkpoint", "auto")
    run = train_in_two_processes(config, tmp_path, {"resumed": flags})["resumed"]
    assert "checkpoint_00000004.pt is damaged" in run.out
    assert "Going on from " in run.out
    assert "checkpoint_00000002.pt, step 2 of 6" in run.out
    weights, expected = run.state()["model"], runs["whole"].state()["model"]
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
