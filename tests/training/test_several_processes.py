"""Two processes learn what one learns from the same batches, whether each holds all weights (DDP) or a part (FSDP2)."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lact_asr.checkpoint import load_checkpoint
from lact_asr.training.optimization import make_optimizer, parameter_groups
from lact_asr.training.processes import load_states, model_state, optimizer_state, whole_model
from lact_asr.training.training_losses import TrainingLosses

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "ddp": ROOT / "training" / "train_hybrid_asr.py",
    "fsdp2": Path(__file__).with_name("train_sharded_on_cpu.py"),
}
STILL = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0, "mask_time_prob": 0.0}
STEPS = 3


@pytest.fixture
def four_batches(write_manifest, tmp_path) -> tuple:
    """Flags for eight utterances, four batches an epoch: two processes share them without repeating any."""
    write_manifest(tmp_path / "eight.jsonl", 8)
    return (
        "--data_dir", tmp_path, "--dataset_type", "manifest", "--train_subset", "eight", "--val_subset", "eight",
        "--max_steps", STEPS, "--warmup_steps", 2, "--logging_steps", 1, "--eval_steps", STEPS, "--lm_order", 0,
        "--batch_size", 2, "--peak_lr", 5e-3, "--device", "cpu",
    )  # fmt: skip


def run_two_processes(script: Path, *flags: object) -> str:
    """What both print."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, script, *flags
    ]  # fmt: skip
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_learn_what_one_learns_from_the_same_batches(train, four_batches, write_config, tmp_path, kind):
    one = train(*four_batches, "--gradient_accumulation_steps", 2, name="one", **STILL)
    config, folder = write_config(tmp_path, **STILL), tmp_path / "two"
    out = run_two_processes(COMMANDS[kind], "--config_path", config, *four_batches, "--output_dir", folder)
    assert "on each of 2 processes" in out

    two = type(one)(0, out, "", folder)
    for event, expected in zip(two.events("train"), one.events("train"), strict=True):
        assert event["ctc_loss"] == pytest.approx(expected["ctc_loss"], rel=1e-5)
    # The sharded run's state and model are whole, and plain processes can use them.
    assert_close(two.state()["model"], one.state()["model"])
    moments = [run.state()["optimizer"]["state"] for run in (two, one)]
    assert moments[0].keys() == moments[1].keys()
    for number, expected in moments[1].items():
        assert_close({number: moments[0][number]["exp_avg"]}, {number: expected["exp_avg"]})
    assert_close(load_checkpoint(folder / "best_model.pt").model.state_dict(), one.best().model.state_dict())


def assert_close(actual: dict, expected: dict) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name] - value).norm() <= 1e-3 * value.norm() + 1e-6, name


@pytest.fixture
def process_group() -> Iterator[None]:
    """A group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_sharded_states_are_those_of_a_plain_model_and_load_into_either(finished_run, process_group):
    def stepped(sharded: bool, states: tuple[dict, dict] | None = None) -> tuple[dict, dict]:
        """States after one more step from given ones."""
        torch.manual_seed(0)
        losses = TrainingLosses(finished_run.best().model.eval())
        optimizer = make_optimizer(parameter_groups(losses.model, 1e-3, 0.5, 0.01))
        if sharded:
            optimizer = shard(losses, optimizer)
        if states is not None:
            load_states(losses, optimizer, *states)
        audio = torch.sin(torch.arange(16_000.0)).view(2, 8_000)
        losses(audio, torch.ones_like(audio, dtype=torch.int64), torch.tensor([[5, 6], [7, -100]])).total.backward()
        optimizer.step()
        assert_close(whole_model(losses).state_dict(), model_state(losses))
        return model_state(losses), optimizer_state(losses, optimizer)

    plain = stepped(sharded=False)
    whole = stepped(sharded=True)
    for step in (1, 2):
        assert not any(isinstance(value, DTensor) for value in whole[0].values())
        assert_close(whole[0], plain[0])
        assert [group["params"] for group in whole[1]["param_groups"]] == [
            group["params"] for group in plain[1]["param_groups"]
        ]
        for number, entry in plain[1]["state"].items():
            assert_close(whole[1]["state"][number], entry)
        if step == 1:  # each goes on from the other's states
            plain, whole = stepped(False, whole), stepped(True, plain)


def shard(losses: TrainingLosses, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """FSDP2 of every block and of the rest, and the optimiser with the same groups of parts."""
    names = {id(parameter): name for name, parameter in losses.named_parameters()}
    groups = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    for block in losses.model.blocks:
        fully_shard(block)
    fully_shard(losses)
    parts = dict(losses.named_parameters())
    return make_optimizer([{**group, "params": [parts[name] for name in group["params"]]} for group in groups])


@pytest.mark.slow
def test_a_second_process_takes_its_share_of_what_is_left(train, train_in_two_processes, write_config, tmp_path):
    """Two epochs of nine utterances: one process hears six, two the rest; then the second epoch, five batches in three steps."""
    flags = ("--max_epochs", 2, "--resume_from_checkpoint", "auto", "--save_steps", 1)
    alone = train(*flags, "--max_steps", 3, name="grown", **STILL)
    assert alone.state()["progress"]["batches_done"] == 3
    grown = train_in_two_processes(write_config(tmp_path, **STILL), tmp_path, {"grown": flags})["grown"]
    whole = train("--max_epochs", 2, name="alone", **STILL)
    assert grown.state()["progress"]["step"] == 3 + 1 + 3
    heard = [run.state()["progress"]["audio_seconds"] for run in (grown, whole)]
    assert heard[0] == pytest.approx(heard[1], rel=0.1)  # each process counts its own batches, times two
    assert [grown.state()["progress"][name] for name in ("epoch", "batches_done", "processes")] == [1, 3, 2]
