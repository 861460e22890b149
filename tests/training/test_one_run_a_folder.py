"""A second training in the folder of one that is under way is refused, and the first does not notice."""

from __future__ import annotations

from lact_asr.errors import EXIT_BAD_INPUT
from lact_asr.training.checkpoint_rotation import checkpoint_path, saved_checkpoints

STEPS = 20


def test_a_second_run_in_one_folder_is_refused(train, start_training, wait_for, tmp_path):
    folder, flags = tmp_path / "run", ("--max_steps", STEPS, "--save_steps", 2, "--logging_steps", 1)
    first = start_training(*flags)
    wait_for((folder / "training_log.jsonl").exists, first)
    second = train(*flags, "--peak_lr", 1e-2, "--resume_from_checkpoint", "auto")
    assert first.is_alive(), "too few steps for this test"
    assert second.exit_code == EXIT_BAD_INPUT
    assert f"another run is writing to {folder}" in second.err
    first.join(300)
    assert first.exitcode == 0
    assert saved_checkpoints(folder)[0] == checkpoint_path(folder, STEPS)
    alone = train(*flags, name="alone")
    run = train(
        "--max_steps", STEPS, "--resume_from_checkpoint", "auto"
    )  # does nothing, and reads what the first wrote
    steps = [[event["ctc_loss"] for event in one.events("train")] for one in (run, alone)]
    assert len(steps[0]) == STEPS
    assert steps[0] == steps[1]
