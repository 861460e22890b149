"""What training minimises: CTC alone, CTC with a self-supervised loss, or CTC after a step of test-time training."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lact_asr.evaluation_mode import evaluation_mode
from lact_asr.inference.ttt.copies import Copies
from lact_asr.inference.ttt.settings import Adaptation, TTTSettings
from lact_asr.inference.ttt.views import Rows, StepView, draw_row_masks
from lact_asr.modeling_hybrid_asr import HybridASRForCTC, HybridASROutput
from lact_asr.training.clean_view_loss import clean_view_divergence
from lact_asr.training.word_error_loss import expected_word_errors


class Losses(NamedTuple):
    """Scalars.

    Attributes:
        total: what is minimised.
        ctc_loss: CTC of the unadapted model, detached.
        ttt_loss: the self-supervised loss, detached; None without one.
        ctc_loss_after: CTC after the step, detached; None but in meta-training.
        word_errors_after: the expected word error rate after the step, detached; None but where that is the outer loss.
        clean_divergence_after: of the output after the step from that on the clean view; likewise.
    """

    total: Tensor
    ctc_loss: Tensor
    ttt_loss: Tensor | None = None
    ctc_loss_after: Tensor | None = None
    word_errors_after: Tensor | None = None
    clean_divergence_after: Tensor | None = None

    def logged(self) -> dict[str, Tensor]:
        """The parts that there are, by name; left where they are, as fetching them would wait for the device."""
        return {name: loss for name, loss in self._asdict().items() if name != "total" and loss is not None}


LOGGED_LOSSES = Losses._fields[1:]


class TrainingLosses(nn.Module):
    """The model with its losses as the only outputs, as the configuration's ``ttt_training`` wants them.

    - "none", and "joint" with masked prediction alone: the model's own loss, whose one masked pass serves both.
    - "joint": CTC(θ) + λ·SSL(θ), with any loss of test-time training.
    - "meta": CTC(θ) + λ·SSL(θ) + μ·L(θ′), with θ′ = θ − η∇SSL(θ) for each utterance by itself, as at test time.
      L (``ttt_outer_loss``) is CTC, the expected word error rate, or KL(p_θ(clean) ‖ p_θ′(noisy)), whose p_θ(clean) is in evaluation mode and a constant.
      Gradients flow through the step to θ and to the rates η (second derivatives included, but for ``ttt_first_order``).
      L(θ′) is at a learned temperature.
      MAML (Finn et al., arXiv 1703.03400) with learned rates (Meta-SGD, arXiv 1707.09835) and a self-supervised inner loss.

    Only losses are returned: DDP expects a gradient of every parameter that an output depends on, and the final states of
    the fast weights depend on parameters that no loss reaches.

    Args:
        model: trained in place.
        settings: of the inner step; None takes the configuration's.
        delimiter_id: the label between words, without which nobody can count word errors.
    """

    def __init__(
        self, model: HybridASRForCTC, settings: TTTSettings | None = None, delimiter_id: int | None = None
    ) -> None:
        super().__init__()
        self.model, self.settings, self.delimiter_id = model, settings or TTTSettings.of(model.config), delimiter_id

    def forward(
        self, input_values: Tensor, attention_mask: Tensor, labels: Tensor, clean_input_values: Tensor | None = None
    ) -> Losses:
        """Losses of a batch.

        Args:
            input_values, attention_mask, labels: as of `HybridASRForCTC.forward`.
            clean_input_values: [B, samples], the same utterances without noise; needed by the outer loss "clean_view", and by no other.
        """
        config = self.model.config
        if config.ttt_training == "meta":
            return self._meta(input_values, attention_mask, labels, clean_input_values)
        if config.ttt_training == "joint" and config.ttt_loss_type != "masked_prediction":
            return self._joint(input_values, attention_mask, labels)
        output = self.model(input_values, attention_mask=attention_mask, labels=labels)
        return Losses(output.loss, output.ctc_loss, output.ttt_loss)

    def inner_gradients(
        self, input_values: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """∇SSL of each utterance by itself, as the first step at test time sees it; with labels ∇CTC in its place.

        Returns:
            Name -> [B, ...], without the B for a single utterance; 0 where there is no gradient.
        """
        adaptation, rows = Adaptation(self.model, self.settings), len(input_values)
        with adaptation.copies(rows) as copies, evaluation_mode(self.model):
            output, view = self._first_pass(adaptation, input_values, attention_mask)
            if labels is None:
                loss = adaptation.loss.losses(view).sum()
            else:
                loss = rows * self.model.ctc_loss(output.logits, output.frame_lengths, labels)
            gradients = torch.autograd.grad(loss, list(copies.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(copies, gradients, strict=True))

    def _joint(self, input_values: Tensor, attention_mask: Tensor, labels: Tensor) -> Losses:
        output = self.model(input_values, attention_mask=attention_mask)
        # Without a teacher masked prediction runs its own pass: this one may have hidden frames (SpecAugment).
        view = self._view(Rows(input_values, attention_mask, output.frame_lengths.tolist()), None, output.logits)
        ctc_loss = self.model.ctc_loss(output.logits, output.frame_lengths, labels)
        ttt_loss = self.settings.loss.losses(view).mean()
        total = ctc_loss + self.model.config.ttt_loss_weight * ttt_loss
        return Losses(total, ctc_loss.detach(), ttt_loss.detach())

    def _meta(
        self, input_values: Tensor, attention_mask: Tensor, labels: Tensor, clean_input_values: Tensor | None
    ) -> Losses:
        config, model = self.model.config, self.model
        adaptation = Adaptation(model, self.settings)
        # Second derivatives are those of attention written out, which takes T² numbers a head: the fused kernels have none.
        attention = contextlib.nullcontext() if config.ttt_first_order else sdpa_kernel(SDPBackend.MATH)
        with adaptation.copies(len(input_values)) as copies:
            with evaluation_mode(model), attention:
                output, view = self._first_pass(adaptation, input_values, attention_mask)
                ttt_loss = self._inner_steps(adaptation, copies, view)
            adapted = model(input_values, attention_mask=attention_mask)
        ctc_loss = model.ctc_loss(output.logits, output.frame_lengths, labels)
        # A step that lowers entropy makes the output surer of itself, which changes no transcript. Without a temperature CTC and the
        # clean view would charge for that and learn rates that are too low, expected word errors reward it and learn rates that are too high.
        tempered = adapted.logits / model.ttt_rates.log_temperature.exp()
        after = {"ctc_loss_after": model.ctc_loss(tempered, adapted.frame_lengths, labels)}
        if config.ttt_outer_loss == "word_errors":
            after["word_errors_after"] = expected_word_errors(
                tempered, adapted.frame_lengths, labels, config.ctc_blank_id, self.delimiter_id
            )
        elif config.ttt_outer_loss == "clean_view":
            clean_logits = self._unadapted_logits(clean_input_values, attention_mask)
            after["clean_divergence_after"] = clean_view_divergence(tempered, clean_logits, adapted.frame_lengths)
        *_, outer = after.values()
        total = ctc_loss + config.ttt_loss_weight * ttt_loss + config.ttt_after_weight * outer
        return Losses(
            total, ctc_loss.detach(), ttt_loss.detach(), **{name: loss.detach() for name, loss in after.items()}
        )

    @torch.no_grad()
    def _unadapted_logits(self, input_values: Tensor, attention_mask: Tensor) -> Tensor:
        with evaluation_mode(self.model):
            return self.model(input_values, attention_mask=attention_mask).logits

    def _first_pass(
        self, adaptation: Adaptation, input_values: Tensor, attention_mask: Tensor
    ) -> tuple[HybridASROutput, StepView]:
        """The unadapted pass, in evaluation mode, and what the objectives of the first step see of it."""
        head = adaptation.loss.head
        output = self.model(input_values, attention_mask=attention_mask, output_hidden_states=head)
        rows = Rows(input_values, attention_mask, output.frame_lengths.tolist())
        return output, self._view(rows, output.hidden_states[-1].detach() if head else None, output.logits)

    def _view(self, rows: Rows, teacher: Tensor | None, logits: Tensor | None = None) -> StepView:
        settings, frames = self.settings, max(rows.lengths)
        generators = [torch.Generator().manual_seed(int(torch.randint(2**31, ()))) for _ in rows.lengths]

        def draw() -> Tensor:
            device = rows.input_values.device
            return draw_row_masks(rows.lengths, frames, settings.mask_prob, settings.mask_length, generators, device)

        return StepView(self.model, rows, teacher, draw, self.model.config.ctc_blank_id, logits=logits)

    def _inner_steps(self, adaptation: Adaptation, copies: Copies, view: StepView) -> Tensor:
        """Replace the copies step by step; returns the loss before the first, the mean over rows."""
        optimizer, first_order = adaptation.optimizer(), self.model.config.ttt_first_order
        losses_before = None
        for step in range(self.settings.steps):
            losses = adaptation.loss.losses(view if step == 0 else self._view(view.rows, view.teacher))
            losses_before = losses if losses_before is None else losses_before
            with torch.autocast(losses.device.type, enabled=False):  # the forward pass's precision, not the caller's
                gradients = torch.autograd.grad(
                    losses.sum(), list(copies.values()), create_graph=not first_order, retain_graph=True,
                    allow_unused=True,
                )  # fmt: skip
            found = {name: value for name, value in zip(copies, gradients, strict=True) if value is not None}
            copies.replace(optimizer.step(copies, found))
        return losses_before.mean()
