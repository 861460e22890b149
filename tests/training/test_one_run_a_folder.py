"""A second training in the folder of one that is under way is refused, and the first does not notice."""

from __future__ import annotations

import time

from lact_asr.errors import EXIT_BAD_INPUT
from lact_asr.training.checkpoint_rotation import checkpoint_path, saved_checkpoints

STEPS = 20
PATIENCE_SECONDS = 300


def test_a_second_run_in_one_folder_is_refused(train, start_training, tmp_path):
    folder, flags = tmp_path / "run", ("--max_steps", STEPS, "--save_steps", 2, "--logging_steps", 1)
    first = start_training(*flags)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (folder / "training_log.jsonl").exists():
        assert first.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second = train(*flags, "--peak_lr", 1e-2, "--resume_from_checkpoint", "auto")
    assert first.is_alive(), "too few steps for this test"
    assert second.exit_code == EXIT_BAD_INPUT
    assert f"another run is writing to {folder}" in second.err
    first.join(PATIENCE_SECONDS)
    assert first.exitcode == 0
    assert saved_checkpoints(folder)[0] == checkpoint_path(folder, STEPS)
    alone = train(*flags, name="alone")
    run = train(
        "--max_steps", STEPS, "--resume_from_checkpoint", "auto"
    )  # nothing is left to do: read what the first wrote
    steps = [[event["ctc_loss"] for event in one.events("train")] for one in (run, alone)]
    assert len(steps[0]) == STEPS
    assert steps[0] == steps[1]
