"""Test-time training: a self-supervised step on one utterance, a second look at it, and everything back as it was.

Two levels of learning must not be confused. The *fast-weight update* is part of every forward pass of the model. This
module is the procedure around it: gradient steps on chosen parameters before the final forward pass.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lact_asr.errors import InputError
from lact_asr.inference.ttt_copies import feature_offset, parameter_copies, takes_copies_of_rows
from lact_asr.inference.ttt_names import FEATURE_OFFSET, OPTIMIZERS
from lact_asr.inference.ttt_objectives import all_finite, is_silent
from lact_asr.inference.ttt_optimizers import make_ttt_optimizer
from lact_asr.inference.ttt_parameters import front_end_of, select_parameters
from lact_asr.inference.ttt_step import Rows, StepView, WeightedSum, draw_row_masks
from lact_asr.modeling_hybrid_asr import HybridASRForCTC

HIGHEST_LEARNING_RATE = 1e30  # beyond it AdamW's own arithmetic overflows


@dataclass(frozen=True)
class TTTSettings:
    """How to adapt.

    Attributes:
        loss_type: one of `lact_asr.inference.ttt_step.OBJECTIVES`, or a weighted sum, "masked_prediction+0.3*entropy".
        steps: optimiser steps; 0 changes nothing.
        parameters: groups of `lact_asr.inference.ttt_parameters`; None takes the first loss's default.
        optimizer: "adamw", "sgd" or "muon" (for matrices; AdamW for the rest).
        learning_rate: of the optimiser, which is fresh for each utterance; None takes the first loss's default.
        mask_prob, mask_length: share of frames to mask, and frames in a span.
        chunk_size: frames of audio whose loss is computed at a time, to bound memory; -1 for the whole utterance.
        seed: of the masks; each utterance starts from it, so that its result does not depend on the others.

    Raises:
        InputError: a value is impossible.
    """

    loss_type: str = "masked_prediction"
    steps: int = 1
    parameters: tuple[str, ...] | None = None
    optimizer: str = "adamw"
    learning_rate: float | None = None
    mask_prob: float = 0.15
    mask_length: int = 10
    chunk_size: int = -1
    seed: int = 0

    def __post_init__(self) -> None:
        loss = self.loss
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"Unknown TTT optimizer {self.optimizer!r}; choose {', '.join(OPTIMIZERS)}.")
        if self.optimizer == "sgd" and self.learning_rate is None:
            raise InputError("TTT with sgd needs a learning rate: the default ones are AdamW's.")
        if self.steps < 0:
            raise InputError(f"TTT needs 0 or more steps, not {self.steps}.")
        if self.learning_rate is not None and not 0 < self.learning_rate <= HIGHEST_LEARNING_RATE:
            raise InputError(
                f"The learning rate of TTT must be above 0 and at most {HIGHEST_LEARNING_RATE:g}, not {self.learning_rate}."
            )
        if self.chunk_size != -1 and self.chunk_size < 1:
            raise InputError(f"TTT's chunks must have 1 or more frames, or -1 for all, not {self.chunk_size}.")
        if loss.masks:
            self._check_masks()

    @property
    def loss(self) -> WeightedSum:
        """What ``loss_type`` says."""
        return WeightedSum.parse(self.loss_type)

    def _check_masks(self) -> None:
        if not 0 < self.mask_prob < 1:
            raise InputError(f"The share of frames to mask must be between 0 and 1, not {self.mask_prob}.")
        if self.mask_length < 1:
            raise InputError(f"The spans to mask must have 1 or more frames, not {self.mask_length}.")
        if -1 < self.chunk_size <= self.mask_length:
            raise InputError(
                f"TTT's chunks of {self.chunk_size} frames have no room for masks of {self.mask_length}; "
                "use longer ones, or -1 for the whole utterance."
            )


@dataclass
class TTTOutcome:
    """What adaptation gave.

    Attributes:
        logits: [T, V] to be decoded: adapted, or the unadapted ones where adaptation was refused.
        logits_before: [T, V] of the unadapted model.
        losses: the self-supervised loss before each step.
        adapted: whether ``logits`` are adapted.
        reason: why not, in a few words; empty where adapted.
    """

    logits: Tensor
    logits_before: Tensor
    losses: list[float] = field(default_factory=list)
    adapted: bool = True
    reason: str = ""

    def refuse(self, reason: str) -> None:
        """Stay with the unadapted output, unless ``reason`` is empty; the first reason counts."""
        if reason and self.adapted:
            self.adapted, self.reason = False, reason


class TestTimeTrainer:
    """Per-utterance test-time training around `HybridASRForCTC` or any Transformers CTC model.

    Args:
        model: called as ``model(input_values, attention_mask=…)`` and giving ``.logits``; masked prediction also
            needs the head that ``--enable_ttt`` trains.
        settings: see `TTTSettings`.
        blank_id: the CTC blank; None takes ``model.config.pad_token_id``.

    Raises:
        InputError: the model has no such parameters, or no masked-prediction head.
    """

    __test__ = False  # the name starts with "Test", but pytest must not collect it

    def __init__(self, model: nn.Module, settings: TTTSettings | None = None, blank_id: int | None = None) -> None:
        self.model, self.settings = model, settings or TTTSettings()
        self.blank_id = model.config.pad_token_id if blank_id is None else blank_id
        self.loss = self.settings.loss
        if self.loss.head and getattr(model, "masked_prediction", None) is None:
            raise InputError(
                "This model has no masked-prediction head (it was trained without --enable_ttt); "
                "use --ttt_loss_type entropy."
            )
        if self.loss.masks and not isinstance(model, HybridASRForCTC):
            raise InputError(
                f"{type(model).__name__} cannot hide frames, which the TTT loss {self.settings.loss_type} needs; "
                "use --ttt_loss_type entropy."
            )
        _, first = self.loss.terms[0]
        groups = self.settings.parameters or first.parameters
        self.parameters = select_parameters(model, groups)
        self.front_end = front_end_of(model) if FEATURE_OFFSET in groups else None
        rate = self.settings.learning_rate
        self.learning_rate = first.learning_rate if rate is None else rate

    def adapt(self, input_values: Tensor) -> TTTOutcome:
        """Adapt to one utterance and transcribe it; the model is afterwards as it was.

        Args:
            input_values: [samples] float, normalised by the processor, on the model's device.
        """
        return self._adapt_rows(input_values[None], None)[0]

    def adapt_batch(self, input_values: Tensor, attention_mask: Tensor | None = None) -> list[TTTOutcome]:
        """Adapt to each row by itself: [B, samples] -> B outcomes. Padding, and who else is in the batch, changes nothing.

        All rows take their steps at once, each on copies of its own. Where that cannot be (a loss in chunks, or rows of
        different lengths for a Transformers model), one after the other.

        Args:
            input_values: [B, samples] float, normalised by the processor.
            attention_mask: [B, samples], 1 for real samples; None: all are.
        """
        lengths = [input_values.shape[1]] * len(input_values)
        if attention_mask is not None:
            lengths = [int(length) for length in attention_mask.sum(-1)]
        ragged = len(set(lengths)) > 1
        input_values = input_values[:, : max(lengths)]
        if self._takes_batches(ragged):
            real = (
                torch.arange(max(lengths), device=input_values.device)
                < torch.tensor(lengths, device=input_values.device)[:, None]
            )
            return self._adapt_rows(input_values.masked_fill(~real, 0.0), real.long() if ragged else None)
        return [self.adapt(row[:length]) for row, length in zip(input_values, lengths, strict=True)]

    def _takes_batches(self, ragged: bool) -> bool:
        if self.settings.chunk_size != -1 or not takes_copies_of_rows(self.model, self.parameters):
            return False
        # Several Transformers models let padding into their convolutions or norms.
        return not ragged or isinstance(self.model, HybridASRForCTC)

    def _adapt_rows(self, input_values: Tensor, attention_mask: Tensor | None) -> list[TTTOutcome]:
        """Steps and final pass of rows that are adapted at once."""
        # A caller's inference mode would leave nothing to differentiate.
        with (
            torch.inference_mode(False),
            _uncached_autocast(input_values.device),
            self._copies(len(input_values)) as copies,
        ):
            input_values, attention_mask = (
                input_values.clone(),
                None if attention_mask is None else attention_mask.clone(),
            )
            with torch.no_grad():
                before = self.model(input_values, attention_mask=attention_mask, output_hidden_states=self.loss.head)
            lengths = self._frame_lengths(attention_mask, *before.logits.shape[:2])
            rows = Rows(input_values, attention_mask, lengths)
            unadapted = [logits[:length] for logits, length in zip(before.logits, lengths, strict=True)]
            outcomes = [TTTOutcome(logits, logits) for logits in unadapted]
            for outcome in outcomes:
                outcome.refuse(self._refusal_before(outcome.logits))
            self._run_steps(rows, before, copies, outcomes)
            if any(outcome.adapted for outcome in outcomes):
                with torch.no_grad():
                    adapted = self.model(input_values, attention_mask=attention_mask).logits
                for outcome, logits, length in zip(outcomes, adapted, lengths, strict=True):
                    outcome.refuse(self._refusal_after(logits[:length]))
                    if outcome.adapted:
                        outcome.logits = logits[:length]
        return outcomes

    @contextlib.contextmanager
    def _copies(self, rows: int) -> Iterator[dict[str, Tensor]]:
        """What adapts, by name, while the model computes with it; see `lact_asr.inference.ttt_copies`."""
        with contextlib.ExitStack() as stack:
            copies = stack.enter_context(parameter_copies(self.model, self.parameters, rows))
            if self.front_end is not None:
                copies[FEATURE_OFFSET] = stack.enter_context(feature_offset(self.front_end, rows))
            yield copies

    def _frame_lengths(self, attention_mask: Tensor | None, rows: int, frames: int) -> list[int]:
        if attention_mask is None:
            return [frames] * rows
        count = getattr(self.model, "frame_lengths", None) or self.model._get_feat_extract_output_lengths
        return count(attention_mask.sum(-1)).tolist()

    def _run_steps(self, rows: Rows, before, copies: dict[str, Tensor], outcomes: list[TTTOutcome]) -> None:
        """The optimiser steps of the rows that were not refused; refuses those that fail."""
        # No optimiser mixes rows: one for all copies does to each what its own would.
        optimizer = make_ttt_optimizer(self.settings.optimizer, copies, self.parameters, self.learning_rate)
        generators = [torch.Generator().manual_seed(self.settings.seed) for _ in outcomes]
        for _ in range(self.settings.steps):
            adapting = [index for index, outcome in enumerate(outcomes) if outcome.adapted]
            if not adapting:
                return
            optimizer.zero_grad()
            losses = self._backward(rows, before, generators, adapting)
            for index, loss in zip(adapting, losses, strict=True):
                outcomes[index].losses.append(loss)
                gradients = (
                    copy.grad[index] if len(outcomes) > 1 else copy.grad
                    for copy in copies.values()
                    if copy.grad is not None
                )
                if not math.isfinite(loss) or not all_finite(*gradients):
                    outcomes[index].refuse("the self-supervised loss or its gradient is not finite")
            optimizer.step()

    def _backward(self, rows: Rows, before, generators: list[torch.Generator], adapting: list[int]) -> list[float]:
        """Gradients of the losses of some rows, piece by piece; a loss is the mean over pieces, weighted by their frames."""
        totals = torch.zeros(len(adapting))
        with torch.enable_grad():
            for frames, samples in self._pieces(rows.input_values, before.logits.shape[1]):
                view = self._view(rows, before, frames, samples, generators)
                share = (frames.stop - frames.start) / before.logits.shape[1]
                losses = share * self.loss.losses(view)[adapting]
                if not losses.requires_grad:
                    groups = ", ".join(self.settings.parameters or ())
                    raise InputError(
                        f"The TTT loss {self.settings.loss_type} does not depend on what adapts ({groups})."
                    )
                losses.sum().backward()  # each row's loss depends on its own copies only
                totals += losses.detach().cpu()
        return totals.tolist()

    def _view(self, rows: Rows, before, frames: slice, samples: slice, generators: list[torch.Generator]) -> StepView:
        """What the objectives see of one piece."""
        settings, count = self.settings, frames.stop - frames.start
        lengths = [min(length, count) for length in rows.lengths]
        mask = None if rows.attention_mask is None else rows.attention_mask[:, samples]
        piece = Rows(rows.input_values[:, samples], mask, lengths)
        teacher = before.hidden_states[-1][:, frames] if self.loss.head else None

        def draw() -> Tensor:
            device = rows.input_values.device
            return draw_row_masks(lengths, count, settings.mask_prob, settings.mask_length, generators, device)

        return StepView(self.model, piece, teacher, draw, self.blank_id)

    def _pieces(self, row: Tensor, total_frames: int) -> list[tuple[slice, slice]]:
        """(frames, samples) of each piece: one for the whole utterance, or ``chunk_size`` frames each."""
        size = self.settings.chunk_size
        if size == -1 or total_frames <= size:
            return [(slice(0, total_frames), slice(0, row.shape[1]))]
        hop, receptive_field = _frame_geometry(self.model.config)
        # A rest that is too short to be masked belongs to the piece before it.
        starts = range(0, max(1, total_frames - self.settings.mask_length), size)
        ends = [*starts[1:], total_frames]
        return [
            (slice(start, end), slice(start * hop, (end - 1) * hop + receptive_field))
            for start, end in zip(starts, ends, strict=True)
        ]

    def _refusal_before(self, logits: Tensor) -> str:
        """Why there is nothing to learn from this utterance, or nothing."""
        if self.settings.steps == 0:
            return "no steps were asked for"
        if not all_finite(logits):
            return "the model's output is not finite"
        if self.loss.masks and len(logits) <= 2 * self.settings.mask_length:
            return "the utterance is too short to mask"
        if is_silent(logits, self.blank_id):
            return "no frame is anything but blank"
        return ""

    def _refusal_after(self, adapted: Tensor) -> str:
        """Why the adapted output must not replace the unadapted one, or nothing."""
        if not all_finite(adapted):
            return "the adapted output is not finite"
        if is_silent(adapted, self.blank_id):
            return "the adapted output collapsed to blanks"
        return ""


def _uncached_autocast(device: torch.device) -> torch.autocast:
    """The caller's autocast, without its cache: that would keep the 16-bit copies of weights that have since changed."""
    enabled = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, torch.get_autocast_dtype(device.type), enabled=enabled, cache_enabled=False)


def _frame_geometry(config) -> tuple[int, int]:
    """(samples from one frame to the next, samples that a frame sees) of a front end of the Wav2Vec2 family.

    The second follows from the stock strides: retuned ones come with dilations that keep it (see
    `lact_asr.front_end_architecture`).
    """
    strides = [math.prod(config.conv_stride[:layer]) for layer in range(len(config.conv_stride))]
    seen = 1 + sum((kernel - 1) * stride for kernel, stride in zip(config.conv_kernel, strides, strict=True))
    return getattr(config, "samples_per_frame", math.prod(config.conv_stride)), seen
