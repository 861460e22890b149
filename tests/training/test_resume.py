"""A run that is stopped and resumed ends with the very weights of one that never stopped; and how a run is stopped."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from benchmarks.kill_and_resume import values_by_name
from lact_asr.training import trainer
from lact_asr.training.checkpoint_rotation import saved_checkpoints
from lact_asr.training.optimization import schedule_factor
from lact_asr.training.stop_request import StopRequest
from lact_asr.training.trainer import Trainer
from lact_asr.training.training_state import Progress, load_training_state, random_state, restore_random_state

SCRIPT = Path(__file__).resolve().parents[2] / "training" / "train_hybrid_asr.py"
EVERYTHING_RANDOM = {
    "hidden_dropout": 0.2, "attention_dropout": 0.2, "layerdrop": 0.3, "mask_time_prob": 0.2, "mask_time_length": 4,
    "mask_feature_prob": 0.2, "mask_feature_length": 4, "ttt_mask_length": 4,
}  # fmt: skip

JOINT = ("--enable_ttt",)
CLEAN_VIEWS = (
    "--ttt_training",
    "meta",
    "--ttt_loss_type",
    "entropy",
    "--ttt_first_order",
    "--ttt_outer_loss",
    "clean_view",
)


@pytest.fixture
def noise_dir(tmp_path) -> Path:
    folder = tmp_path / "noise"
    folder.mkdir()
    soundfile.write(folder / "hiss.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    return folder


def send_sigterm_after(patch: pytest.MonkeyPatch, method: str, call: int) -> None:
    """Let SIGTERM arrive at the end of the n-th call of a method of the trainer."""
    original, calls = getattr(Trainer, method), itertools.count(1)

    def patched(self, *arguments):
        result = original(self, *arguments)
        if next(calls) == call:
            signal.raise_signal(signal.SIGTERM)
        return result

    patch.setattr(Trainer, method, patched)


def assert_same_state(actual: dict, expected: dict) -> None:
    assert actual["progress"]["step"] == expected["progress"]["step"]
    for name, value in expected["model"].items():
        assert torch.equal(actual["model"][name], value), name
    for index, entry in expected["optimizer"]["state"].items():
        for name, value in entry.items():
            assert torch.equal(actual["optimizer"]["state"][index][name], value), (index, name)
    assert torch.equal(actual["random"][0]["cpu"], expected["random"][0]["cpu"])
    assert actual["scheduler"] == expected["scheduler"]


@pytest.mark.parametrize(
    ("method", "call", "accumulation", "stopped_step", "training"),
    [
        pytest.param("_after_step", 3, 1, 3, JOINT, id="within an epoch"),
        pytest.param("_after_step", 5, 1, 5, JOINT, id="after the last batch of an epoch"),
        # Five batches an epoch: the first epoch's validation comes between the batches of the third step.
        pytest.param("_validate", 1, 2, 2, JOINT, id="in the middle of an accumulation, at the end of an epoch"),
        pytest.param("_after_step", 3, 2, 3, CLEAN_VIEWS, id="meta-training with clean views, in the second epoch"),
    ],
)
def test_stopped_and_resumed_is_bit_for_bit_never_stopped(
    train, monkeypatch, noise_dir, method, call, accumulation, stopped_step, training
):
    flags = (
        "--max_steps", 7 if accumulation == 1 else 4, *training, "--speed_factors", "0.9,1,1.1", "--noise_dir",
        noise_dir, "--gradient_accumulation_steps", accumulation, "--peak_lr", 5e-3,
    )  # fmt: skip
    straight = train(*flags, name="straight", **EVERYTHING_RANDOM)
    assert straight.exit_code == 0

    with monkeypatch.context() as patch:
        send_sigterm_after(patch, method, call)
        stopped = train(*flags, name="stopped", **EVERYTHING_RANDOM)
    assert stopped.exit_code == 128 + signal.SIGTERM
    assert stopped.state()["progress"]["step"] == stopped_step
    assert not torch.equal(stopped.state()["model"]["ctc_head.weight"], straight.state()["model"]["ctc_head.weight"])

    resumed = train(*flags, "--resume_from_checkpoint", name="stopped", **EVERYTHING_RANDOM)
    assert resumed.exit_code == 0
    assert f"step {stopped_step} of" in resumed.out
    assert_same_state(resumed.state(), straight.state())
    assert values_by_name(resumed.folder) == values_by_name(straight.folder)


@pytest.mark.parametrize(
    ("flags", "step"),
    [(("--eval_steps", 3), 3), ((), 5), (("--max_steps", 4), 4)],
    ids=["between steps", "at the end of an epoch", "at the end"],
)
def test_a_validation_that_was_stopped_is_made_up_for(train, monkeypatch, flags, step):
    flags = ("--max_steps", 6, *flags)
    straight = train(*flags, name="straight", **EVERYTHING_RANDOM)
    original = trainer.validate

    def stopped_at_once(*arguments, **keywords):
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "validate", stopped_at_once)
        stopped = train(*flags, name="stopped", **EVERYTHING_RANDOM)
    assert stopped.exit_code == 128 + signal.SIGTERM
    assert (stopped.state()["progress"]["step"], stopped.events("validation")) == (step, [])
    resumed = train(*flags, "--resume_from_checkpoint", name="stopped", **EVERYTHING_RANDOM)
    assert_same_state(resumed.state(), straight.state())
    rates = [[(event["step"], event["loss"]) for event in run.events("validation")] for run in (resumed, straight)]
    assert rates[0] == rates[1]
    assert resumed.best().notes == straight.best().notes


def test_two_runs_with_one_seed_agree_and_another_seed_differs(train, noise_dir):
    flags = ("--max_steps", 2, "--speed_factors", "0.9,1.1", "--noise_dir", noise_dir, "--noise_prob", 1)
    one, same, other = (
        train(*flags, "--seed", seed, name=name, **EVERYTHING_RANDOM).state()["model"]["ctc_head.weight"]
        for seed, name in ((5, "one"), (5, "same"), (6, "other"))
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_resuming_a_finished_run_changes_nothing_and_scores_again(finished_run, train, tmp_path):
    shutil.copytree(finished_run.folder, tmp_path / "copy")
    (tmp_path / "copy" / "test_results.json").unlink()
    flags = ("--max_epochs", 2, "--warmup_steps", 4, "--enable_ttt", "--test_subset", "test-generated")
    run = train(*flags, "--resume_from_checkpoint", name="copy")
    assert run.exit_code == 0
    assert_same_state(run.state(), finished_run.state())
    assert (run.folder / "test_results.json").read_text() == (finished_run.folder / "test_results.json").read_text()


def test_a_run_says_how_it_was_started_before(finished_run, train, tmp_path):
    shutil.copytree(finished_run.folder, tmp_path / "copy")
    longer = ("--max_steps", 11, "--warmup_steps", 4, "--enable_ttt", "--resume_from_checkpoint", "--peak_lr")
    found = []
    for rate in (1e-3, 1e-3, 2e-3):
        assert train(*longer, rate, name="copy").exit_code == 0
        run = json.loads((tmp_path / "copy" / "run.json").read_text())
        found.append([start["arguments"]["peak_lr"] for start in (*run["earlier_starts"], run)])
    before = json.loads((finished_run.folder / "run.json").read_text())
    assert run["earlier_starts"][0] == before
    rate = before["arguments"]["peak_lr"]
    assert found == [[rate, 1e-3], [rate, 1e-3], [rate, 1e-3, 2e-3]]


def test_a_longer_run_goes_on_from_a_finished_one_in_a_new_folder(finished_run, train):
    """The best model stayed in the other folder, so the first validation here counts as best, whatever its rate."""
    flags = ("--max_steps", 11, "--warmup_steps", 4, "--enable_ttt", "--test_subset", "test-generated")
    run = train(*flags, "--resume_from_checkpoint", finished_run.folder)
    assert run.exit_code == 0
    assert [event["step"] for event in run.events("train")] == [11]
    assert run.best().notes["step"] in (10, 11)
    assert (run.folder / "test_results.json").exists()


@pytest.mark.parametrize(
    "changes", [{"hidden_size": 64}, {"num_hidden_layers": 3}, {"use_momentum": True}], ids=lambda changes: next(iter(changes))
)  # fmt: skip
def test_a_state_of_another_model_is_refused_and_the_run_left_alone(finished_run, train, tmp_path, changes):
    shutil.copytree(finished_run.folder, tmp_path / "copy")
    before = _contents(tmp_path / "copy")
    run = train("--max_steps", 12, "--enable_ttt", "--resume_from_checkpoint", name="copy", **changes)
    assert run.exit_code == 2
    assert run.err.startswith("error: ")
    assert "checkpoint_00000010.pt" in run.err
    assert run.err.count("\n") == 1
    assert _contents(tmp_path / "copy") == before


def test_sigterm_to_the_script_saves_exits_with_143_and_leaves_nothing_temporary(
    corpus_dir, write_config, train, wait_for, tmp_path
):
    folder = tmp_path / "run"
    log = folder / "training_log.jsonl"
    command = [
        sys.executable, SCRIPT, "--config_path", write_config(tmp_path), "--data_dir", corpus_dir, "--train_subset",
        "train-generated", "--val_subset", "dev-generated", "--output_dir", folder, "--device", "cpu", "--batch_size", 2,
        "--max_steps", 100_000, "--logging_steps", 1, "--lm_order", 0, "--eval_steps", 3, "--save_steps", 1,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:  # fmt: skip
        try:
            wait_for(lambda: log.exists() and log.read_text().count('"train"') >= 4, process)
            process.terminate()
            out = process.communicate(timeout=60)[0].decode()
        finally:
            process.kill()
    assert process.returncode == 143
    step = load_training_state(saved_checkpoints(folder)[0])["progress"]["step"]
    assert f"Stopped by signal 15 after step {step}." in out
    assert step >= 4
    assert not [path for path in folder.rglob("*") if path.suffix == ".tmp"]
    assert (folder / "best_model.pt").exists()
    resumed = train("--max_steps", step + 1, "--resume_from_checkpoint")
    assert resumed.exit_code == 0
    assert resumed.state()["progress"]["step"] == step + 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_request_notes_the_first_signal_and_puts_handlers_back(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop
        assert stop.exit_code == 0
        signal.raise_signal(number)
        assert stop
        assert stop.exit_code == 128 + number
        signal.raise_signal(signal.SIGTERM)  # a launcher passes on what everyone got
        assert stop.exit_code == 128 + number
    assert signal.getsignal(number) == before


def test_a_signal_long_after_the_first_ends_the_process(monkeypatch):
    sent = []
    monkeypatch.setattr("lact_asr.training.stop_request.SECONDS_OF_REPEATS", -1.0)
    monkeypatch.setattr("lact_asr.training.stop_request.os.kill", lambda *call: sent.append(call))
    with StopRequest():
        signal.raise_signal(signal.SIGTERM)
        assert not sent
        signal.raise_signal(signal.SIGTERM)
        assert sent == [(os.getpid(), signal.SIGTERM)]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_random_state_repeats_what_was_drawn(tmp_path):
    def draw() -> list[float]:
        return [*torch.rand(3).tolist(), random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()]

    draw()  # the normal generators now hold their next value
    torch.save(random_state(), tmp_path / "state.pt")
    drawn = draw()
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == drawn


def test_progress_prefers_lower_wer_then_lower_cer():
    progress = Progress()
    assert progress.is_better(2.0, 1.0, utterances=9)
    assert not progress.is_better(0.0, 0.0, utterances=0)  # nothing could be read
    progress.best_wer, progress.best_cer, progress.best_utterances = 1.0, 0.8, 9
    assert progress.is_better(0.9, 0.9, utterances=9)
    assert progress.is_better(1.0, 0.7, utterances=9)
    assert not progress.is_better(1.0, 0.8, utterances=9)
    assert not progress.is_better(1.1, 0.1, utterances=9)
    assert not progress.is_better(0.9, 0.9, utterances=8)  # of an easier part, perhaps


def test_rates_of_the_flags_count_when_a_run_is_resumed(train):
    train("--max_steps", 3, "--peak_lr", 1e-3, "--weight_decay", 0.1)
    resumed = train(
        "--max_steps", 5, "--peak_lr", 2e-2, "--weight_decay", 0.0, "--warmup_steps", 0, "--logging_steps", 1,
        "--resume_from_checkpoint",
    )  # fmt: skip
    rates = [event["learning_rate"] for event in resumed.events("train") if event["step"] > 3]
    assert rates == [2e-2 * schedule_factor(step, 0, 5) for step in (3, 4)]
    assert all(group["weight_decay"] == 0.0 for group in resumed.state()["optimizer"]["param_groups"])


def test_other_data_or_another_seed_start_the_epoch_anew(train):
    train("--max_steps", 2)
    resumed = train("--max_steps", 3, "--seed", 7, "--resume_from_checkpoint")
    assert "its epoch starts anew" in resumed.out
    assert resumed.state()["progress"]["batches_done"] == 1
    assert "anew" not in train("--max_steps", 4, "--seed", 7, "--resume_from_checkpoint").out


@pytest.mark.parametrize(
    ("change", "steps", "batches_done"),
    [(("--batch_size", 9), 7 + 3, 1), (("--gradient_accumulation_steps", 2), 7 + 6, 4)],
    ids=["batches", "accumulation"],
)
def test_max_epochs_stays_what_it_says_with_other_batches(train, monkeypatch, change, steps, batches_done):
    """Stopped after 7 of 4 × 5 steps: with one batch an epoch three epochs are left, with accumulation 13 batches."""
    with monkeypatch.context() as patch:
        send_sigterm_after(patch, "_after_step", 7)
        train("--max_epochs", 4)
    train("--max_epochs", 4, *change, "--resume_from_checkpoint", "--eval_steps", 100)
    run = train("--max_epochs", 4, *change, "--resume_from_checkpoint")  # there is nothing left to do
    progress = run.state()["progress"]
    assert (progress["step"], progress["epoch"], progress["batches_done"]) == (steps, 3, batches_done)


def test_a_stop_in_the_middle_of_a_step_saves_the_last_whole_one(train, monkeypatch):
    flags = ("--max_steps", 2, "--gradient_accumulation_steps", 3)
    with monkeypatch.context() as patch:
        send_sigterm_after(patch, "_train_batch", 4)
        stopped = train(*flags, name="stopped")
    assert stopped.state()["progress"]["step"] == 1
    resumed = train(*flags, "--resume_from_checkpoint", name="stopped")
    assert_same_state(resumed.state(), train(*flags, name="straight").state())


def test_validation_that_reads_nothing_is_never_the_best(train, corpus_dir, tmp_path):
    shutil.copytree(corpus_dir, tmp_path / "corpus")
    for path in (tmp_path / "corpus" / "dev-generated").rglob("*.flac"):
        path.write_bytes(path.read_bytes()[:500])
    run = train("--max_steps", 1, "--eval_steps", 1, "--data_dir", tmp_path / "corpus")
    (event,) = run.events("validation")
    assert event["utterances"] == 0
    assert "recordings cannot be read" in run.out + run.err
    assert not (run.folder / "best_model.pt").exists()


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
