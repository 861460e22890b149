"""What a run goes on from: its place in the data and in the schedule, also where it is started otherwise than before."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence

import torch

from lact_asr.data.batching import SpeechDataLoader
from lact_asr.training.optimization import schedule_factor
from lact_asr.training.training_state import Progress


def find_position(
    progress: Progress, batches: SpeechDataLoader, accumulated_batches: int, report: Callable[[str], None]
) -> None:
    """Let the loader go on where the state was taken, by whatever number of processes.

    In other data, or with other batches or another seed, a number of batches means nothing: the epoch starts anew.

    Args:
        progress: of the state; takes over the loader's position, and whether epochs have other numbers of steps from now on.
        batches: the loader of this process.
        accumulated_batches: of a step.
        report: is given a sentence where the data have changed.
    """
    before = progress.position()
    progress.epochs_differ |= progress.accumulated_batches not in (None, accumulated_batches)
    progress.accumulated_batches = accumulated_batches
    if progress.data_digest not in (None, batches.plan.digest):
        report("The training data, their batches or the seed are not those of the checkpoint: its epoch starts anew.")
        before = {"epoch": progress.epoch, "batches_done": 0}
        progress.epochs_differ = True
    batches.load_state_dict(before)
    progress.data_digest = batches.plan.digest
    progress.take_position(batches.state_dict())
    progress.epochs_differ |= before.get("processes") not in (None, progress.processes)


def steps_left(batches: SpeechDataLoader, max_epochs: int, gradient_accumulation_steps: int) -> int:
    """Optimiser steps that the rest of this epoch and the whole ones after it make for this number of processes."""
    whole_epochs = max_epochs - batches.epoch - 1  # as long as this one, as `total_steps` takes them
    if whole_epochs < 0:
        return 0
    return (batches.batches_left + whole_epochs * batches.batches_per_epoch) // gradient_accumulation_steps


def peaks_and_decays(optimizer: torch.optim.Optimizer) -> list[tuple[float, float]]:
    """Peak learning rate and weight decay of each group, before a state replaces them by its own."""
    return [(group["initial_lr"], group["weight_decay"]) for group in optimizer.param_groups]


def follow_schedule(
    optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LambdaLR, arguments: argparse.Namespace,
    total_steps: int, chosen: Sequence[tuple[float, float]],
) -> None:  # fmt: skip
    """At the schedule's place, take the rates of this start's flags and not those of the start that wrote the state.

    Args:
        optimizer, scheduler: with the state loaded.
        arguments: have ``warmup_steps``.
        total_steps: of the whole run.
        chosen: `peaks_and_decays` of the flags.
    """
    schedule = functools.partial(schedule_factor, warmup_steps=arguments.warmup_steps, total_steps=total_steps)
    for group, (peak, decay) in zip(optimizer.param_groups, chosen, strict=True):
        group["initial_lr"], group["weight_decay"] = peak, decay
        group["lr"] = peak * schedule(scheduler.last_epoch)
    scheduler.base_lrs = [peak for peak, _ in chosen]
    scheduler.lr_lambdas = [lambda step: schedule(step)] * len(chosen)  # of a plain function no state is kept
