"""The shipped accelerate configurations are what the installed accelerate launches with."""

import os
from pathlib import Path

import pytest
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser, prepare_multi_gpu_env

from lact_asr.modeling_hybrid_asr import LaCTBlock

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "accelerate"
EXPECTED = {  # type of processes, how many, machines
    "one_gpu": ("NO", 1, 1),
    "eight_gpus_ddp": ("MULTI_GPU", 8, 1),
    "eight_gpus_fsdp2": ("FSDP", 8, 1),
    "two_nodes_ddp": ("MULTI_GPU", 16, 2),
}


def test_each_file_is_expected():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_configurations_load(name):
    path = str(FOLDER / f"{name}.yaml")
    config = load_config_from_file(path)
    kind, processes, machines = EXPECTED[name]
    assert (config.distributed_type, config.num_processes, config.num_machines) == (kind, processes, machines)
    flags = ["--machine_rank", "1", "--main_process_ip", "10.0.0.1"] if machines > 1 else []
    arguments, _, _ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", path, *flags, "train_hybrid_asr.py", "--batch_size", "8"])
    )
    assert arguments.mixed_precision == "bf16"
    assert arguments.num_processes == processes
    assert arguments.training_script_args == ["--batch_size", "8"]
    if machines > 1:
        assert (arguments.machine_rank, arguments.main_process_ip) == (1, "10.0.0.1")


def test_fsdp2_shards_block_by_block(monkeypatch):
    flags = ["--config_file", str(FOLDER / "eight_gpus_fsdp2.yaml"), "train_hybrid_asr.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(flags))
    for name, value in prepare_multi_gpu_env(arguments).items():
        if name not in os.environ:
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.transformer_cls_names_to_wrap == [LaCTBlock.__name__]
    assert plugin.reshard_after_forward is True
