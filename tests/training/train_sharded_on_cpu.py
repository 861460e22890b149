"""The training command with FSDP2 on CPU processes: accelerate shards on GPUs only, PyTorch anywhere."""

from __future__ import annotations

import argparse
import sys

from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin

from lact_asr.training import run_setup
from lact_asr.training.train_hybrid_asr import main

make_unsharded = run_setup.make_accelerator


def make_sharding_accelerator(arguments: argparse.Namespace) -> Accelerator:
    accelerator = make_unsharded(arguments)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["LaCTBlock"]
    )
    return accelerator


run_setup.make_accelerator = make_sharding_accelerator
sys.exit(main())
