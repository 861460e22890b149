"""The training loop: accumulation, clipping, schedule, validation, checkpoints, and a stop that loses nothing."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from lact_asr.audio import SAMPLE_RATE_HZ
from lact_asr.checkpoint import BEST_MODEL, save_checkpoint
from lact_asr.data.batching import SpeechDataLoader
from lact_asr.errors import InputError
from lact_asr.modeling_hybrid_asr import HybridASRForCTC
from lact_asr.processing_hybrid_asr import HybridASRProcessor
from lact_asr.text import WORD_DELIMITER_TOKEN
from lact_asr.training.optimization import make_optimizer, make_scheduler, parameter_groups
from lact_asr.training.run_log import RunLog
from lact_asr.training.stop_request import StopRequest
from lact_asr.training.training_losses import LOGGED_LOSSES, TrainingLosses
from lact_asr.training.training_state import (
    Progress,
    load_training_state,
    random_state,
    restore_random_state,
    save_training_state,
)
from lact_asr.training.validation import ValidationResult, validate

LAST_CHECKPOINT = "last_checkpoint.pt"
INPUTS = ("input_values", "attention_mask", "labels", "clean_input_values")  # the last for one outer loss only


class Trainer:
    """One run: `train` until the last step or a stop request.

    Args:
        arguments: of `lact_asr.training.arguments`.
        accelerator: device, processes, precision, accumulation.
        model, processor: to be trained, and its vocabulary.
        training_batches: knows its epoch and position.
        validation_batches: whole labelled utterances; every process holds all, the main one validates.

    Attributes:
        log: of the main process; None on the others, and until it is set.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        accelerator: Accelerator,
        model: HybridASRForCTC,
        processor: HybridASRProcessor,
        training_batches: SpeechDataLoader,
        validation_batches: SpeechDataLoader,
    ) -> None:
        self.arguments, self.accelerator = arguments, accelerator
        self.log: RunLog | None = None
        self.vocabulary = processor.vocabulary
        self.training_batches, self.validation_batches = training_batches, validation_batches
        self.total_steps = total_steps(arguments, len(training_batches))
        groups = parameter_groups(
            model,
            arguments.peak_lr,
            model.config.encoder_lr_scale,
            arguments.weight_decay,
            arguments.optimizer == "muon",
        )
        losses = TrainingLosses(model, delimiter_id=self.vocabulary[WORD_DELIMITER_TOKEN])
        self.model, self.optimizer = accelerator.prepare(losses, make_optimizer(groups))
        # The schedule counts optimiser steps of the whole run, so accelerate must not multiply it by the processes.
        self.scheduler = make_scheduler(self.optimizer.optimizer, arguments.warmup_steps, self.total_steps)
        self.progress = Progress()
        self._recent: list[dict[str, float]] = []
        self._last_rates: dict[str, float] = {}
        self._random_state = random_state()

    @property
    def plain_model(self) -> HybridASRForCTC:
        """The model without accelerate's wrappers."""
        return self.accelerator.unwrap_model(self.model).model

    def resume(self, path: Path) -> None:
        """Take everything over from `save_state`'s file.

        Raises:
            InputError: it cannot be used.
        """
        content = load_training_state(path, self.vocabulary)
        try:
            self.plain_model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"The training state {path} is of another model configuration, optimizer or other frozen parts: "
                f"{' '.join(str(error).split())[:200]}"
            ) from None
        self.scheduler.load_state_dict(content["scheduler"])
        if self.accelerator.scaler is not None and content["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        self.progress = Progress(**content["progress"])
        if not (self.arguments.output_dir / BEST_MODEL).exists():  # it stayed in another run's folder
            self.progress.best_wer = self.progress.best_cer = None
        self.training_batches.load_state_dict(
            {"epoch": self.progress.epoch, "batches_done": self.progress.batches_done}
        )
        # Run with another number of processes, none of the states is the right one: fresh seeds are as good.
        if len(content["random"]) == self.accelerator.num_processes:
            restore_random_state(content["random"][self.accelerator.process_index])
            self._random_state = random_state()

    def train(self) -> int:
        """Run to the last step or the first stop request; returns the exit code (0, or 128 + the signal)."""
        main = self.accelerator.is_main_process
        with (
            StopRequest() as stop,
            tqdm(total=self.total_steps, initial=self.progress.step, desc="training", disable=not main) as bar,
        ):
            while self.progress.step < self.total_steps and not self._all_stop(stop):
                self._train_epoch(bar, stop)
            self.save_state()
        if stop:
            self.accelerator.print(f"Stopped by signal {stop.signal_number} after step {self.progress.step}.")
        self._report_unreadable()
        return stop.exit_code

    def _all_stop(self, stop: StopRequest) -> bool:
        """Whether any process was asked to stop: all must leave at the same step, or the others wait for it for ever."""
        if self.accelerator.num_processes > 1:
            number = torch.tensor([stop.signal_number or 0], device=self.accelerator.device)
            stop.signal_number = int(self.accelerator.gather(number).max()) or None
        return bool(stop)

    def _train_epoch(self, bar: tqdm, stop: StopRequest) -> None:
        """The rest of the current epoch, or as much of it as is wanted.

        Where an epoch ends between two optimiser steps, its last gradients are kept for the next one's first step.
        """
        self.model.train()
        from_start, batches = self.training_batches.state_dict()["batches_done"] == 0, 0
        for batch in self.training_batches:
            batches += 1
            if not self._train_batch(batch):
                continue
            self._after_step(bar)
            if self.progress.step >= self.total_steps or self._all_stop(stop):
                return
        if from_start and batches == 0:
            raise InputError(f"None of the training recordings can be read; {self._unreadable()}.")
        if self.arguments.eval_steps is None and self.progress.step > 0:
            self._validate(bar)

    def _train_batch(self, batch: dict) -> bool:
        """Forward and backward; true where this batch completed an optimiser step."""
        started, device = time.perf_counter(), self.accelerator.device
        with self.accelerator.accumulate(self.model):
            inputs = {name: batch[name].to(device, non_blocking=True) for name in INPUTS if name in batch}
            losses = self.model(**inputs)
            self.accelerator.backward(losses.total)
            stepped = self.accelerator.sync_gradients
            if stepped:
                self._optimizer_step()
        seconds = float(batch["attention_mask"].sum()) / SAMPLE_RATE_HZ * self.accelerator.num_processes
        self.progress.audio_seconds += seconds
        self._recent.append(
            {
                **losses.logged(),
                "audio_seconds": seconds,
                "seconds": time.perf_counter() - started,
            }
        )
        return stepped

    def _optimizer_step(self) -> None:
        """Clip and step; a step whose gradients are not finite is left out and counted."""
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.arguments.max_grad_norm)
        if self.accelerator.scaler is None and not torch.isfinite(norm):
            self.progress.skipped_steps += 1
        else:
            self.optimizer.step()
            self.progress.skipped_steps += bool(self.optimizer.step_was_skipped)
        self._last_rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        self.scheduler.step()
        self.optimizer.zero_grad()

    def _after_step(self, bar: tqdm) -> None:
        """Count the step, and log, validate and save where they are due."""
        self.progress.step += 1
        # Noted at steps only, so that a resumed run repeats the batches of an unfinished accumulation exactly.
        self._random_state, position = random_state(), self.training_batches.state_dict()
        self.progress.epoch, self.progress.batches_done = position["epoch"], position["batches_done"]
        bar.update()
        step, arguments = self.progress.step, self.arguments
        if step % arguments.logging_steps == 0:
            self._log_recent(bar)
        if step == self.total_steps or (arguments.eval_steps and step % arguments.eval_steps == 0):
            self._validate(bar)
        if step % arguments.save_steps == 0:
            self.save_state()

    def _log_recent(self, bar: tqdm) -> None:
        recent, self._recent = self._recent, []
        means = self._mean_losses(recent)
        if self.log is None:
            return
        speed = sum(entry["audio_seconds"] for entry in recent) / sum(entry["seconds"] for entry in recent)
        values = {
            **{name: means.get(name) for name in LOGGED_LOSSES},
            "learning_rate": self._last_rates.get("transformer", 0.0),
            "encoder_learning_rate": self._last_rates.get("encoder", 0.0),
            "audio_seconds_per_second": speed,
            "audio_hours": self.progress.audio_seconds / 3600,
            "epoch": self.progress.epoch,
            "skipped_steps": self.progress.skipped_steps,
        }
        self.log.write("train", self.progress.step, values)
        best = self.progress.best_wer
        bar.set_postfix_str(
            f"loss {means['ctc_loss']:.3f}, best WER {'-' if best is None else f'{best:.1%}'}, {speed:.0f} s audio/s"
        )

    def _mean_losses(self, recent: list[dict[str, float]]) -> dict[str, float]:
        """Over the batches of all processes, which must all take part."""
        names = [name for name in LOGGED_LOSSES if name in recent[0]]
        own = [sum(entry[name] for entry in recent) / len(recent) for name in names]
        means = self.accelerator.reduce(torch.tensor(own, dtype=torch.float64, device=self.accelerator.device), "mean")
        return dict(zip(names, means.tolist(), strict=True))

    def _validate(self, bar: tqdm) -> None:
        """Score the validation set on the main process and keep the model if it is the best so far.

        A meta-trained model is judged by what it does after its step.
        """
        if self.accelerator.is_main_process:
            result, values = self._score(use_ttt=False), {}
            if self.plain_model.config.ttt_training == "meta":
                values = {"wer_without_ttt": result.wer, "cer_without_ttt": result.cer, "loss_without_ttt": result.loss}
                result = self._score(use_ttt=True)
            better = self.progress.is_better(result.wer, result.cer)
            if better:
                self.progress.best_wer, self.progress.best_cer = result.wer, result.cer
                self.save_best()
            self.log.write(
                "validation", self.progress.step, {"wer": result.wer, "cer": result.cer, "loss": result.loss, **values}
            )
            before = f" ({values['wer_without_ttt']:.2%} without TTT)" if values else ""
            bar.write(
                f"step {self.progress.step}: validation WER {result.wer:.2%}{before}, CER {result.cer:.2%}"
                f"{' (best so far)' if better else ''}"
            )
        self.accelerator.wait_for_everyone()

    def _score(self, use_ttt: bool) -> ValidationResult:
        with self.accelerator.autocast():
            return validate(
                self.plain_model, self.validation_batches, self.vocabulary, self.accelerator.device, use_ttt=use_ttt
            )

    def save_best(self) -> None:
        """Write the self-contained ``best_model.pt``."""
        notes = {"step": self.progress.step, "wer": self.progress.best_wer, "cer": self.progress.best_cer}
        save_checkpoint(self.arguments.output_dir / BEST_MODEL, self.plain_model, self.vocabulary, notes)

    def save_state(self) -> None:
        """Write ``last_checkpoint.pt``, which `resume` reads; every process must take part."""
        random_states = gather_object([self._random_state])
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        save_training_state(
            self.arguments.output_dir / LAST_CHECKPOINT,
            model=self.plain_model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scheduler=self.scheduler.state_dict(),
            scaler=None if scaler is None else scaler.state_dict(),
            random=random_states,
            progress=self.progress,
            vocabulary=self.vocabulary,
        )

    def _unreadable(self) -> str:
        problems = list(self.training_batches.problems.values())
        more = f" and {len(problems) - 3:,} more" if len(problems) > 3 else ""
        return f"{len(problems):,} left out: {', '.join(problem.name for problem in problems[:3])}{more}"

    def _report_unreadable(self) -> None:
        if self.training_batches.problems:
            self.accelerator.print(f"Training recordings that could not be read: {self._unreadable()}.")


def total_steps(arguments: argparse.Namespace, batches_per_epoch: int) -> int:
    """Optimiser steps of the whole run: ``max_steps``, or what ``max_epochs`` make."""
    if arguments.max_steps is not None:
        return arguments.max_steps
    return max(1, arguments.max_epochs * batches_per_epoch // arguments.gradient_accumulation_steps)
