"""Test-time training: a self-supervised step on one utterance, a second look at it, and everything back as it was.

Two levels of learning must not be confused. The *fast-weight update* is part of every forward pass of the model. This
module is the procedure around it: gradient steps on chosen parameters before the final forward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lact_asr.errors import InputError
from lact_asr.inference.ttt_objectives import all_finite, is_silent, suta_objective
from lact_asr.inference.ttt_parameters import borrowed, select_parameters
from lact_asr.masking import span_mask

LOSS_TYPES = ("masked_prediction", "entropy")

# What adapts, and how fast, unless the user says otherwise. Entropy's were chosen on development data (docs/results.md);
# masked prediction's have not been measured on a trained model yet.
DEFAULT_PARAMETERS = {"masked_prediction": ("norms",), "entropy": ("norms", "front_end")}
DEFAULT_LEARNING_RATES = {"masked_prediction": 1e-3, "entropy": 2e-3}
HIGHEST_LEARNING_RATE = 1e30  # beyond it AdamW's own arithmetic overflows


@dataclass(frozen=True)
class TTTSettings:
    """How to adapt.

    Attributes:
        loss_type: "masked_prediction" (the model's own head) or "entropy" (SUTA's objective).
        steps: optimiser steps; 0 changes nothing.
        parameters: groups of `lact_asr.inference.ttt_parameters`; None takes the loss's default.
        learning_rate: of AdamW, fresh for each utterance; None takes the loss's default.
        mask_prob, mask_length: share of frames to mask, and frames in a span.
        chunk_size: frames of audio whose loss is computed at a time, to bound memory; -1 for the whole utterance.
        seed: of the masks; each utterance starts from it, so that its result does not depend on the others.

    Raises:
        InputError: a value is impossible.
    """

    loss_type: str = "masked_prediction"
    steps: int = 1
    parameters: tuple[str, ...] | None = None
    learning_rate: float | None = None
    mask_prob: float = 0.15
    mask_length: int = 10
    chunk_size: int = -1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss_type not in LOSS_TYPES:
            raise InputError(f"Unknown TTT loss {self.loss_type!r}; choose {' or '.join(LOSS_TYPES)}.")
        if self.steps < 0:
            raise InputError(f"TTT needs 0 or more steps, not {self.steps}.")
        if self.learning_rate is not None and not 0 < self.learning_rate <= HIGHEST_LEARNING_RATE:
            raise InputError(
                f"The learning rate of TTT must be above 0 and at most {HIGHEST_LEARNING_RATE:g}, not {self.learning_rate}."
            )
        if self.chunk_size != -1 and self.chunk_size < 1:
            raise InputError(f"TTT's chunks must have 1 or more frames, or -1 for all, not {self.chunk_size}.")
        if self.loss_type == "masked_prediction":
            self._check_masks()

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
        loss_type = self.settings.loss_type
        if loss_type == "masked_prediction" and getattr(model, "masked_prediction", None) is None:
            raise InputError(
                "This model has no masked-prediction head (it was trained without --enable_ttt); "
                "use --ttt_loss_type entropy."
            )
        self.parameters = select_parameters(model, self.settings.parameters or DEFAULT_PARAMETERS[loss_type])
        rate = self.settings.learning_rate
        self.learning_rate = DEFAULT_LEARNING_RATES[loss_type] if rate is None else rate

    def adapt_batch(self, input_values: Tensor, attention_mask: Tensor | None = None) -> list[TTTOutcome]:
        """Adapt to each row by itself: [B, samples] -> B outcomes. Padding is cut off first, so it changes nothing."""
        lengths = [input_values.shape[1]] * len(input_values)
        if attention_mask is not None:
            lengths = attention_mask.sum(-1).tolist()
        return [self.adapt(row[: int(length)]) for row, length in zip(input_values, lengths, strict=True)]

    def adapt(self, input_values: Tensor) -> TTTOutcome:
        """Adapt to one utterance and transcribe it; the model is afterwards as it was.

        Args:
            input_values: [samples] float, normalised by the processor, on the model's device.
        """
        # A caller's inference mode would leave nothing to differentiate.
        with torch.inference_mode(False), borrowed(self.model, self.parameters):
            row = input_values[None].clone()
            with torch.no_grad():
                before = self._forward(row)
            logits = before.logits[0]
            outcome = TTTOutcome(logits, logits)
            refusal = self._refusal_before(logits)
            if not refusal:
                refusal = self._run_steps(row, before, outcome)
            if not refusal:
                with torch.no_grad():
                    adapted = self._forward(row).logits[0]
                refusal = self._refusal_after(adapted)
        if refusal:
            outcome.adapted, outcome.reason = False, refusal
        else:
            outcome.logits = adapted
        return outcome

    def _forward(self, row: Tensor):
        """One pass; the hidden states are the teacher of masked prediction."""
        wants_hidden = self.settings.loss_type == "masked_prediction"
        return self.model(row, output_hidden_states=wants_hidden)

    def _run_steps(self, row: Tensor, before, outcome: TTTOutcome) -> str:
        """The optimiser steps; returns why they were given up, or nothing."""
        optimizer = torch.optim.AdamW(self.parameters.values(), lr=self.learning_rate, weight_decay=0.0)
        generator = torch.Generator().manual_seed(self.settings.seed)
        for _ in range(self.settings.steps):
            optimizer.zero_grad()
            loss = self._backward(row, before, generator)
            outcome.losses.append(loss)
            gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
            if not math.isfinite(loss) or not all_finite(*gradients):
                return "the self-supervised loss or its gradient is not finite"
            optimizer.step()
        return ""

    def _backward(self, row: Tensor, before, generator: torch.Generator) -> float:
        """Gradients of the loss, piece by piece; the loss is the mean over pieces, weighted by their frames."""
        total_frames = before.logits.shape[1]
        total = 0.0
        with torch.enable_grad():
            for frames, samples in self._pieces(row, total_frames):
                loss = self._loss(row[:, samples], before, frames, generator)
                loss = loss * ((frames.stop - frames.start) / total_frames)
                loss.backward()
                total += loss.item()
        return total

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

    def _loss(self, row: Tensor, before, frames: slice, generator: torch.Generator) -> Tensor:
        if self.settings.loss_type == "entropy":
            return suta_objective(self._forward(row).logits[0], self.blank_id)
        count = frames.stop - frames.start
        lengths = torch.tensor([count], device=row.device)
        mask = span_mask(lengths, count, self.settings.mask_prob, self.settings.mask_length, generator)
        return self.model.masked_prediction_loss(row, None, mask, teacher=before.hidden_states[-1][:, frames])

    def _refusal_before(self, logits: Tensor) -> str:
        """Why there is nothing to learn from this utterance, or nothing."""
        if self.settings.steps == 0:
            return "no steps were asked for"
        if not all_finite(logits):
            return "the model's output is not finite"
        if self.settings.loss_type == "masked_prediction" and len(logits) <= 2 * self.settings.mask_length:
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


def _frame_geometry(config) -> tuple[int, int]:
    """(samples from one frame to the next, samples that a frame sees) of a front end of the Wav2Vec2 family.

    The second follows from the stock strides: retuned ones come with dilations that keep it (see
    `lact_asr.front_end_architecture`).
    """
    strides = [math.prod(config.conv_stride[:layer]) for layer in range(len(config.conv_stride))]
    seen = 1 + sum((kernel - 1) * stride for kernel, stride in zip(config.conv_kernel, strides, strict=True))
    return getattr(config, "samples_per_frame", math.prod(config.conv_stride)), seen
