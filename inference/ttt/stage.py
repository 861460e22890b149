"""One stage of test-time training by gradient steps: the loss of rows that adapt at once, piece by piece, and the steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lact_asr.errors import InputError
from lact_asr.front_end.geometry import FrameGeometry
from lact_asr.inference.ttt.copies import Copies
from lact_asr.inference.ttt.objectives import finite_rows
from lact_asr.inference.ttt.optimizers import InnerOptimizer, sam_ascent
from lact_asr.inference.ttt.outcome import TTTOutcome
from lact_asr.inference.ttt.settings import Adaptation, TTTSettings
from lact_asr.inference.ttt.views import Guides, Rows, StepView, draw_row_masks


class GradientStage:
    """Steps along the gradient of a loss, as settings say.

    Args:
        model: see `lact_asr.inference.ttt_procedure.TestTimeTrainer`.
        settings: of this stage.
        blank_id: the CTC blank.
        guides: what some losses need beside the model.

    Raises:
        InputError: the model cannot adapt so; see `Adaptation`.
    """

    def __init__(self, model: nn.Module, settings: TTTSettings, blank_id: int, guides: Guides) -> None:
        self.model, self.settings, self.blank_id, self.guides = model, settings, blank_id, guides
        self.adaptation = Adaptation(model, settings, guides)
        self.loss = self.adaptation.loss

    def optimizer(self) -> InnerOptimizer:
        """A fresh one."""
        return self.adaptation.optimizer()

    def generators(self, rows: int) -> list[torch.Generator]:
        """Each row's source of masks, from the settings' seed: no row depends on another."""
        return [torch.Generator().manual_seed(self.settings.seed) for _ in range(rows)]

    @property
    def starts_from_logits(self) -> bool:
        """Whether the first step looks at the unmasked pass of whole utterances, so that `run` can be given its logits."""
        return self.settings.steps > 0 and self.settings.chunk_size == -1 and self.loss.plain

    def run(
        self, rows: Rows, copies: Copies, outcomes: list[TTTOutcome], optimizer: InnerOptimizer, logits: Tensor | None = None
    ) -> None:  # fmt: skip
        """The optimiser steps of the rows that were not refused; refuses those that fail.

        Args:
            rows: the utterances.
            copies: replaced by each step.
            outcomes: of the rows; get the losses.
            optimizer: of `optimizer`, or one that has taken steps before.
            logits: [B, T, V] of a pass with the copies as they are, with its graph, to spare the first step one.
        """
        generators = self.generators(len(outcomes))
        for step in range(self.settings.steps):
            adapting = [index for index, outcome in enumerate(outcomes) if outcome.adapted]
            if not adapting:
                return
            losses, gradients = self.differentiate(rows, copies, generators, adapting, logits if step == 0 else None)
            finite = finite_rows(gradients.values(), len(outcomes))
            for index, loss in zip(adapting, losses, strict=True):
                outcomes[index].losses.append(loss)
                if not math.isfinite(loss) or not finite[index]:
                    outcomes[index].refuse("the self-supervised loss or its gradient is not finite")
            if self.settings.sharpness and self._is_reliable(losses):
                losses, gradients = self._differentiate_uphill(rows, copies, generators, adapting, gradients)
            if not self._is_reliable(losses):
                return
            with torch.no_grad():
                stepped = optimizer.step(copies, gradients, self.settings.rate_factor(step))
            copies.replace({name: tensor.requires_grad_() for name, tensor in stepped.items()})
            for index in adapting:
                outcomes[index].steps += 1

    def _is_reliable(self, losses: list[float]) -> bool:
        """SAR's filter (arXiv 2302.12400, equation 2): E < E₀ = share · log V. With one, rows adapt one at a time."""
        margin = self.settings.entropy_margin
        return margin is None or losses[0] < margin * math.log(self.model.config.vocab_size)

    def _differentiate_uphill(
        self, rows: Rows, copies: Copies, generators: list[torch.Generator], adapting: list[int], gradients: dict[str, Tensor]
    ) -> tuple[list[float], dict[str, Tensor]]:  # fmt: skip
        """(losses, gradients) where the loss is highest nearby; the copies stay where they are."""
        here = {name: copies[name] for name in gradients}
        with torch.no_grad():
            uphill = sam_ascent(here, gradients, self.settings.sharpness, len(rows.lengths))
        copies.replace({name: tensor.requires_grad_() for name, tensor in uphill.items()})
        sharp = self.differentiate(rows, copies, generators, adapting)
        copies.replace(here)
        return sharp

    def differentiate(
        self, rows: Rows, copies: Copies, generators: list[torch.Generator], adapting: list[int],
        logits: Tensor | None = None,
    ) -> tuple[list[float], dict[str, Tensor]]:  # fmt: skip
        """(losses of some rows, their gradients by name), piece by piece; a loss is the mean over pieces, weighted by their frames.

        Raises:
            InputError: the loss does not depend on what adapts.
        """
        names = [name for name in copies if name in self.adaptation.names]
        totals, gradients, total_frames = torch.zeros(len(adapting)), {}, max(rows.lengths)
        with torch.enable_grad():
            for frames, samples in self.pieces(rows.input_values, total_frames):
                view = self._view(rows, frames, samples, generators, logits)
                share = (frames.stop - frames.start) / total_frames
                losses = share * self.loss.losses(view)[adapting]
                if not losses.requires_grad:
                    groups = ", ".join(self.adaptation.groups)
                    raise InputError(
                        f"The TTT loss {self.settings.loss_type} does not depend on what adapts ({groups})."
                    )
                # Each row's loss depends on its own copies only.
                # Precision is the forward pass's, not the caller's.
                with torch.autocast(losses.device.type, enabled=False):
                    of_piece = torch.autograd.grad(losses.sum(), [copies[name] for name in names], allow_unused=True)
                for name, gradient in zip(names, of_piece, strict=True):
                    if gradient is not None:
                        gradients[name] = gradients[name] + gradient if name in gradients else gradient
                totals += losses.detach().cpu()
        return totals.tolist(), gradients

    @torch.no_grad()
    def losses(self, rows: Rows) -> list[float]:
        """The loss of each row with the copies as they are, without gradients."""
        whole = slice(0, max(rows.lengths)), slice(0, rows.input_values.shape[1])
        view = self._view(rows, *whole, self.generators(len(rows.lengths)))
        return self.loss.losses(view).tolist()

    def _view(
        self, rows: Rows, frames: slice, samples: slice, generators: list[torch.Generator], logits: Tensor | None = None
    ) -> StepView:
        """What the objectives see of one piece."""
        settings, count = self.settings, frames.stop - frames.start
        lengths = [min(length, count) for length in rows.lengths]
        mask = None if rows.attention_mask is None else rows.attention_mask[:, samples]
        piece = Rows(rows.input_values[:, samples], mask, lengths, pseudo_labels=rows.pseudo_labels)
        teacher = rows.teacher[:, frames] if self.loss.head else None

        def draw() -> Tensor:
            device = rows.input_values.device
            return draw_row_masks(lengths, count, settings.mask_prob, settings.mask_length, generators, device)

        # The control is about gradients; without them there is nothing to shuffle.
        shuffled = settings.control == "shuffled_targets" and torch.is_grad_enabled()
        shufflers = generators if shuffled else None
        return StepView(self.model, piece, teacher, draw, self.blank_id, shufflers, logits, self.guides)

    def pieces(self, row: Tensor, total_frames: int) -> list[tuple[slice, slice]]:
        """(frames, samples) of each piece: one for the whole utterance, or ``chunk_size`` frames each."""
        size = self.settings.chunk_size
        if size == -1 or total_frames <= size:
            return [(slice(0, total_frames), slice(0, row.shape[1]))]
        geometry = FrameGeometry.of(self.model.config)
        hop, receptive_field = geometry.samples_per_frame, geometry.receptive_field_samples
        # A rest that is too short to be masked belongs to the piece before it.
        starts = range(0, max(1, total_frames - self.settings.mask_length), size)
        ends = [*starts[1:], total_frames]
        return [
            (slice(start, end), slice(start * hop, (end - 1) * hop + receptive_field))
            for start, end in zip(starts, ends, strict=True)
        ]
