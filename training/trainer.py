"""The training loop: accumulation, clipping, schedule, validation, checkpoints, and a stop that loses nothing."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from lact_asr.audio import SAMPLE_RATE_HZ
from lact_asr.checkpoint import BEST_MODEL, save_checkpoint
from lact_asr.data.batching import SpeechDataLoader
from lact_asr.errors import InputError, first_names, warn
from lact_asr.modeling_hybrid_asr import HybridASRForCTC
from lact_asr.processing_hybrid_asr import HybridASRProcessor
from lact_asr.text import WORD_DELIMITER_TOKEN
from lact_asr.training.checkpoint_rotation import (
    checkpoint_path,
    load_newest_readable_by_all,
    make_room,
    rotate_checkpoints,
)
from lact_asr.training.curves import draw_curves
from lact_asr.training.left_out import add_left_out
from lact_asr.training.optimization import make_optimizer, make_scheduler, parameter_groups
from lact_asr.training.processes import (
    cpu_process_group,
    largest,
    load_states,
    mean_over_processes,
    model_state,
    optimizer_state,
    whole_model,
)
from lact_asr.training.resuming import find_position, follow_schedule, peaks_and_decays, steps_left
from lact_asr.training.run_log import LOG_NAME, RunLog
from lact_asr.training.stop_request import Stopped, StopRequest
from lact_asr.training.training_losses import LOGGED_LOSSES, TrainingLosses
from lact_asr.training.training_state import Progress, random_state, restore_random_state, save_training_state
from lact_asr.training.validation import ValidationResult, validate

MEANS = (*LOGGED_LOSSES, "audio_seconds", "seconds", "data_seconds")  # over batches and processes, for the log
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
        self.progress = Progress(
            data_digest=training_batches.plan.digest, accumulated_batches=arguments.gradient_accumulation_steps
        )
        self._cpu_group = cpu_process_group(accelerator)
        # Numbers of a batch each, losses on the device: of the steps since the last line of the log, and of the one under way.
        self._recent: list[dict[str, float | torch.Tensor]] = []
        self._step_batches: list[dict[str, float | torch.Tensor]] = []
        self._step_ids: list[str] = []
        self._last_rates: dict[str, float] = {}
        self._random_state = random_state()
        self._since = time.perf_counter()  # when the last batch was done

    @property
    def plain_losses(self) -> TrainingLosses:
        """What is trained, without accelerate's wrappers."""
        return self.accelerator.unwrap_model(self.model)

    def resume(self, paths: Sequence[Path]) -> Path:
        """Take everything over from the first of `save_state`'s files, or from the next one where it cannot be read.

        Returns:
            The one that was used.

        Raises:
            InputError: it is of another run, or none can be read.
        """
        path, content = load_newest_readable_by_all(paths, self.accelerator.print)
        if content["vocabulary"] != self.vocabulary:
            raise InputError(
                f"The vocabulary in {path} differs from the one of this training data; they do not belong together."
            )
        chosen = peaks_and_decays(self.optimizer.optimizer)
        try:
            load_states(self.plain_losses, self.optimizer.optimizer, content["model"], content["optimizer"])
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
            self.progress.best_wer = self.progress.best_cer = self.progress.validated_step = None
        accumulated = self.arguments.gradient_accumulation_steps
        find_position(self.progress, self.training_batches, accumulated, self.accelerator.print)
        if self.progress.epochs_differ and self.arguments.max_steps is None:
            left = steps_left(self.training_batches, self.arguments.max_epochs, accumulated)
            self.total_steps = self.progress.step + left
        follow_schedule(self.optimizer.optimizer, self.scheduler, self.arguments, self.total_steps, chosen)
        # Run with another number of processes, none of the states is the right one: fresh seeds are as good.
        if len(content["random"]) == self.accelerator.num_processes:
            restore_random_state(content["random"][self.accelerator.process_index])
            self._random_state = random_state()
            self._recent = content["recent"][self.accelerator.process_index]
        return path

    def train(self) -> int:
        """Run to the last step or the first stop request; returns the exit code (0, or 128 + the signal).

        Raises:
            InputError: nothing can be read, or nothing but steps that are not finite follow on each other.
            OSError: the last state cannot be written.
        """
        main = self.accelerator.is_main_process
        with (
            StopRequest() as stop,
            tqdm(total=self.total_steps, initial=self.progress.step, desc="training", disable=not main) as bar,
        ):
            if self._validation_is_due():
                self._validate(bar, stop)  # which a stop request had interrupted
            while self.progress.step < self.total_steps and not self._all_stop(stop):
                self._train_epoch(bar, stop)
            self.save_state()
        if stop:
            self.accelerator.print(f"Stopped by signal {stop.signal_number} after step {self.progress.step}.")
        self._report_unreadable()
        return stop.exit_code

    def _all_stop(self, stop: StopRequest) -> bool:
        """Whether any process was asked to stop: all must leave at the same step, or the others wait for it for ever."""
        agreed = largest(stop.signal_number or 0, self._cpu_group)
        if agreed:  # else it stays: a signal may have arrived while the processes were asking each other
            stop.signal_number = agreed
        return agreed > 0

    def _train_epoch(self, bar: tqdm, stop: StopRequest) -> None:
        """The rest of the current epoch, or as much of it as is wanted.

        Where an epoch ends between two optimiser steps, its last gradients are kept for the next one's first step.
        """
        self.model.train()
        position, batches = self.training_batches.state_dict(), 0
        from_start = position["batches_done"] == 0 and not position["earlier_parts"]
        self._since = time.perf_counter()
        for batch in self.training_batches:
            batches += 1
            if self._train_batch(batch):
                self._after_step(bar, stop)
                self._since = time.perf_counter()
            # Between two steps, too: the checkpoint is that of the last one, and a step can take a while.
            if self.progress.step >= self.total_steps or self._all_stop(stop):
                return
        if from_start and batches == 0:
            raise InputError(
                f"None of the training recordings can be read; {left_out_in_words([*self.training_batches.problems])}."
            )
        if self.arguments.eval_steps is None and self.progress.step > 0:
            self._validate(bar, stop)

    def _train_batch(self, batch: dict) -> bool:
        """Forward and backward; true where this batch completed an optimiser step."""
        device, waited = self.accelerator.device, time.perf_counter() - self._since
        with self.accelerator.accumulate(self.model):
            inputs = {name: batch[name].to(device, non_blocking=True) for name in INPUTS if name in batch}
            with self.accelerator.autocast():  # FSDP2 has none of its own
                losses = self.model(**inputs)
            # A loss that is not finite makes all gradients so, on all processes; any other is left as it is.
            self.accelerator.backward(losses.total * (1 + 0 * losses.total.detach()))
            stepped = self.accelerator.sync_gradients
            if stepped:
                self._optimizer_step()
        seconds = float(batch["attention_mask"].sum()) / SAMPLE_RATE_HZ * self.accelerator.num_processes
        self._step_ids += batch["ids"]
        self._step_batches.append(
            {
                **losses.logged(),
                "audio_seconds": seconds,
                "seconds": (now := time.perf_counter()) - self._since,
                "data_seconds": waited,
            }
        )
        self._since = now
        return stepped

    def _optimizer_step(self) -> None:
        """Clip and step; a step whose gradients are not finite is left out and counted."""
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.arguments.max_grad_norm)
        skipped = self.accelerator.scaler is None and not torch.isfinite(norm)
        if not skipped:
            self.optimizer.step()
            skipped = self.optimizer.step_was_skipped
        self.progress.skipped_steps += skipped
        self.progress.skipped_in_a_row = self.progress.skipped_in_a_row + 1 if skipped else 0
        self._last_rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        self.scheduler.step()
        self.optimizer.zero_grad()

    def _after_step(self, bar: tqdm, stop: StopRequest) -> None:
        """Count the step, and log, validate and save where they are due."""
        self._note_step()
        bar.update()
        step, arguments = self.progress.step, self.arguments
        if self.progress.skipped_in_a_row > 0:
            self._log_skipped()
        self._step_ids = []
        if step % arguments.logging_steps == 0:
            self._log_recent(bar)
        if self._validation_is_due():
            self._validate(bar, stop)
        if self.progress.skipped_in_a_row >= arguments.max_skipped_steps:
            self._give_up()
        if step % arguments.save_steps == 0:
            with self._going_on_without("the checkpoint"):
                self.save_state()

    def _note_step(self) -> None:
        """Take over what a resumed run starts from: whole steps only, so that it repeats an unfinished one exactly."""
        self.progress.step += 1
        self._random_state = random_state()
        self.progress.take_position(self.training_batches.state_dict())
        self.progress.audio_seconds += sum(batch["audio_seconds"] for batch in self._step_batches)
        self._recent += self._step_batches
        self._step_batches = []

    def _validation_is_due(self) -> bool:
        """After this step, whatever the epoch."""
        step, every = self.progress.step, self.arguments.eval_steps
        return step > 0 and (step == self.total_steps or (every is not None and step % every == 0))

    def _log_skipped(self) -> None:
        ids = gather_object(self._step_ids)
        if self.log is not None:
            self.log.write("skipped", self.progress.step, {"ids": ids})

    def _give_up(self) -> None:
        self.save_state()
        last, count = self.progress.step, self.progress.skipped_in_a_row
        raise InputError(
            f"The loss or its gradients were not finite in {count} steps in a row, {last - count + 1} to {last}; the ids of "
            f'their utterances are in {self.arguments.output_dir / LOG_NAME} (event "skipped").'
        )

    def _log_recent(self, bar: tqdm) -> None:
        recent, self._recent = in_plain_numbers(self._recent), []
        means = mean_over_processes(
            self.accelerator,
            {name: sum(entry[name] for entry in recent) / len(recent) for name in MEANS if name in recent[0]},
        )
        if self.log is None:
            return
        speed = means["audio_seconds"] / means["seconds"]
        values = {
            **{name: means.get(name) for name in LOGGED_LOSSES},
            "learning_rate": self._last_rates.get("transformer", 0.0),
            "encoder_learning_rate": self._last_rates.get("encoder", 0.0),
            "audio_seconds_per_second": speed,
            "share_waiting_for_data": means.get("data_seconds", 0.0) / means["seconds"],
            "audio_hours": self.progress.audio_seconds / 3600,
            "epoch": self.progress.epoch,
            "skipped_steps": self.progress.skipped_steps,
        }
        self.log.write("train", self.progress.step, values)
        best = self.progress.best_wer
        bar.set_postfix_str(
            f"loss {means['ctc_loss']:.3f}, best WER {'-' if best is None else f'{best:.1%}'}, {speed:.0f} s audio/s"
        )

    def _validate(self, bar: tqdm, stop: StopRequest) -> None:
        """On the main process, unless this step has been validated before the run was resumed.

        Nothing that training draws at random depends on it. A stop request interrupts it; the resumed run makes up for it.
        """
        model = whole_model(self.plain_losses)
        if self.accelerator.is_main_process and self.progress.validated_step != self.progress.step:
            state = random_state()
            with contextlib.suppress(Stopped):
                self._score_and_keep(model, bar, stop)
            restore_random_state(state)
        self.accelerator.wait_for_everyone()

    def _score_and_keep(self, model: HybridASRForCTC, bar: tqdm, stop: StopRequest) -> None:
        """Score the validation set and keep the model if it is the best so far.

        A meta-trained model is judged by what it does after its step.
        """
        result, values = self._score(model, stop, use_ttt=False), {}
        if model.config.ttt_training == "meta":
            values = {"wer_without_ttt": result.wer, "cer_without_ttt": result.cer, "loss_without_ttt": result.loss}
            result = self._score(model, stop, use_ttt=True)
        better = self.progress.is_better(result.wer, result.cer, result.utterances)
        if better:
            with self._going_on_without(BEST_MODEL):
                self._save_best(model, result)
        self.progress.validated_step = self.progress.step
        rates = {"wer": result.wer, "cer": result.cer, "loss": result.loss, "utterances": result.utterances}
        self.log.write("validation", self.progress.step, {**rates, **values})
        before = f" ({values['wer_without_ttt']:.2%} without TTT)" if values else ""
        bar.write(
            f"step {self.progress.step}: validation WER {result.wer:.2%}{before}, CER {result.cer:.2%}"
            f"{' (best so far)' if better else ''}{self._missing_validation(result.utterances)}"
        )
        draw_curves(self.arguments.output_dir)

    def _missing_validation(self, utterances: int) -> str:
        wanted = len(self.validation_batches.plan.cuts)
        return f"; {wanted - utterances:,} of {wanted:,} recordings cannot be read" if utterances < wanted else ""

    def _score(self, model: HybridASRForCTC, stop: StopRequest, use_ttt: bool) -> ValidationResult:
        with self.accelerator.autocast():
            return validate(
                model, self.validation_batches, self.vocabulary, self.accelerator.device, use_ttt=use_ttt, stop=stop
            )

    def _save_best(self, model: HybridASRForCTC, result: ValidationResult) -> None:
        """Write the self-contained ``best_model.pt``."""
        notes = {"step": self.progress.step, "wer": result.wer, "cer": result.cer}
        save_checkpoint(self.arguments.output_dir / BEST_MODEL, model, self.vocabulary, notes)
        self.progress.best_wer, self.progress.best_cer = result.wer, result.cer
        self.progress.best_utterances = result.utterances

    def save_state(self) -> None:
        """Write the checkpoint of this step, which `resume` reads, and delete old ones; every process must take part.

        Raises:
            OSError: it cannot be written; those before it are still there.
        """
        random_states = gather_object([self._random_state])
        recent = gather_object([in_plain_numbers(self._recent)])
        unreadable = gather_object(list(self.training_batches.problems.values()))
        model, optimizer = model_state(self.plain_losses), optimizer_state(self.plain_losses, self.optimizer.optimizer)
        try:
            if self.accelerator.is_main_process:
                self._write_state(model=model, optimizer=optimizer, random=random_states, recent=recent)
                add_left_out(self.arguments.output_dir, unreadable, self.progress.step)
        finally:  # a launcher ends the others as soon as one leaves, be the main one still writing
            self.accelerator.wait_for_everyone()

    def _write_state(self, **of_all_processes: object) -> None:
        self.log.flush()
        scaler = self.accelerator.scaler
        path = checkpoint_path(self.arguments.output_dir, self.progress.step)
        save = functools.partial(
            save_training_state,
            path,
            **of_all_processes,
            scheduler=self.scheduler.state_dict(),
            scaler=None if scaler is None else scaler.state_dict(),
            progress=self.progress,
            vocabulary=self.vocabulary,
        )
        try:
            save()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not make_room(path):
                raise
            save()
        rotate_checkpoints(path, self.arguments.keep_checkpoints)

    @contextlib.contextmanager
    def _going_on_without(self, what: str) -> Iterator[None]:
        """Training outlives a full disk: there may be room the next time."""
        try:
            yield
        except OSError as error:
            warn(f"{what} of step {self.progress.step} could not be written ({error.strerror}); training goes on.")

    def _report_unreadable(self) -> None:
        names = gather_object(list(self.training_batches.problems))
        if names:
            self.accelerator.print(f"Training recordings that could not be read: {left_out_in_words(names)}.")


def total_steps(arguments: argparse.Namespace, batches_per_epoch: int) -> int:
    """Optimiser steps of the whole run: ``max_steps``, or what ``max_epochs`` make."""
    if arguments.max_steps is not None:
        return arguments.max_steps
    return max(1, arguments.max_epochs * batches_per_epoch // arguments.gradient_accumulation_steps)


def left_out_in_words(names: Sequence[str]) -> str:
    """How many utterances are left out, and which ones, as a part of a sentence."""
    names = list(dict.fromkeys(names))
    return f"{len(names):,} left out: {first_names(names)}"


def in_plain_numbers(batches: list[dict[str, float | torch.Tensor]]) -> list[dict[str, float]]:
    """Fetch what is still on the device."""
    return [{name: float(value) for name, value in batch.items()} for batch in batches]
