"""TensorBoard by default, others by name, and none that is needed."""

import errno
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lact_asr.errors import InputError
from lact_asr.training import trackers
from lact_asr.training.run_log import LOG_NAME, RunLog
from lact_asr.training.trackers import check_trackers, start_trackers


def shown(folder: Path, name: str) -> list[tuple[int, float]]:
    """Steps and values that TensorBoard shows under a name."""
    return [(event.step, event.value) for event in board_of(folder).Scalars(name)]


def board_of(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard")).Reload()


def test_tensorboard_shows_the_numbers_of_every_event(tmp_path):
    log = RunLog(tmp_path, start_trackers(["tensorboard"], tmp_path, {}))
    log.write("train", 1, {"ctc_loss": 2.5, "note": "words", "nothing": None})
    log.write("train", 2, {"ctc_loss": 1.5})
    log.write("validation", 2, {"wer": 0.5})
    log.close()
    assert sorted(board_of(tmp_path).Tags()["scalars"]) == ["train/ctc_loss", "validation/wer"]
    assert shown(tmp_path, "train/ctc_loss") == [(1, 2.5), (2, 1.5)]


def test_tensorboard_shows_no_step_twice_when_a_run_goes_on_from_before_its_end(tmp_path):
    for first_step, losses in ((1, (1.0, 2.0, 3.0)), (3, (30.0,))):
        (board,) = start_trackers(["tensorboard"], tmp_path, {}, first_step)
        for step, loss in enumerate(losses, start=first_step):
            board.write({"train/loss": loss}, step)
        board.close()
    assert shown(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 30.0)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (RuntimeError("the service\nis gone"), r"the service\nis gone"),
        (ValueError(), "ValueError"),
    ],
    ids=["no room on the disk", "an error of its own", "an error without words"],
)
def test_a_tracker_that_fails_ends_and_the_log_goes_on(tmp_path, capsys, error, reason):
    class Broken:
        package = "abacus"

        def write(self, values, step):
            raise error

    log = RunLog(tmp_path, [Broken(), *start_trackers(["tensorboard"], tmp_path, {})])
    for step in (1, 2):
        log.write("train", step, {"ctc_loss": 1.0})
    log.close()
    assert capsys.readouterr().err.count(f"What abacus shows cannot be written any more ({reason})") == 1
    assert len((tmp_path / LOG_NAME).read_text().splitlines()) == len(shown(tmp_path, "train/ctc_loss")) == 2


def test_training_without_trackers_leaves_no_files_of_theirs(train):
    run = train("--max_steps", 1, "--trackers", "none")
    assert run.exit_code == 0
    assert not (run.folder / "tensorboard").exists()
    assert run.events("train")


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_read(train, monkeypatch):
    monkeypatch.setattr(trackers.WeightsAndBiases, "package", "surely_not_installed")
    run = train("--data_dir", "nowhere", "--trackers", "tensorboard,wandb")
    assert run.exit_code == 2
    assert run.err == (
        "error: --trackers wandb needs the package surely_not_installed: pip install surely_not_installed, or train with "
        "--trackers none, which leaves training_log.jsonl\n"
    )
    with pytest.raises(InputError, match="pip install"):
        check_trackers(["wandb"])


def test_an_unknown_tracker_is_named(capsys):
    from lact_asr.training.arguments import parse_arguments

    with pytest.raises(SystemExit):
        parse_arguments(["--trackers", "abacus"])
    assert "'abacus' is none of tensorboard, wandb" in capsys.readouterr().err


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the package wandb is not installed: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = RunLog(tmp_path, start_trackers(["wandb"], tmp_path, {"seed": 0}))
    log.write("train", 1, {"ctc_loss": 2.5})
    log.close()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
