"""Test-time training: self-supervised steps on an utterance, a second look at it, and everything back as it was.

Two levels of learning must not be confused. The *fast-weight update* is part of every forward pass of the model. This
module is the procedure around it: steps of chosen parameters before the final forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from lact_asr.inference.alignment.ctc_paths import collapse_path
from lact_asr.inference.ttt.copies import Copies, lent, parameter_copies, takes_copies_of_rows
from lact_asr.inference.ttt.frozen_layers import layers_below, remembered
from lact_asr.inference.ttt.objectives import all_finite
from lact_asr.inference.ttt.optimizers import InnerOptimizer
from lact_asr.inference.ttt.outcome import AdaptedState, TTTOutcome
from lact_asr.inference.ttt.safeguards import TOO_UNCERTAIN, refusal_after, refusal_before, refusals_of_weights
from lact_asr.inference.ttt.search import SearchDistribution, SearchStage
from lact_asr.inference.ttt.settings import TTTSettings
from lact_asr.inference.ttt.stage import GradientStage
from lact_asr.inference.ttt.views import Guides, Rows
from lact_asr.lact_layer import constant_updates
from lact_asr.transformers_ctc import takes_padding
from lact_asr.ttt_names import SEARCH
from lact_asr.wav2vec2_encoder import frames_mask


class TestTimeTrainer:
    """Per-utterance test-time training around `HybridASRForCTC` or any Transformers CTC model.

    Utterances are what the model's processor makes of them: ``input_values``, float [samples], or for Wav2Vec2-BERT
    ``input_features``, float [frames, features]. Where [samples] is said below, the other is meant as well.

    Args:
        model: called as ``model(input_values, attention_mask=…)`` and giving ``.logits``; masked prediction also
            needs the head that ``--enable_ttt`` trains.
        settings: how to adapt, or several for stages that go on from one another; None takes those that the model was
            trained for, a step of the loss entropy for models without the head, and SUTA's steps for models of Transformers.
        blank_id: the CTC blank; None takes ``model.config.pad_token_id``.
        guides: what some losses and safeguards need beside the model.

    Raises:
        InputError: the model cannot adapt so; see `Adaptation`.
    """

    __test__ = False  # the name starts with "Test", but pytest must not collect it

    def __init__(
        self,
        model: nn.Module,
        settings: TTTSettings | Sequence[TTTSettings] | None = None,
        blank_id: int | None = None,
        guides: Guides = Guides(),  # noqa: B008 - frozen
    ) -> None:
        if settings is None:
            settings = TTTSettings.of(model.config)
        self.model, self.guides = model, guides
        self.settings = (settings,) if isinstance(settings, TTTSettings) else tuple(settings)
        self.blank_id = model.config.pad_token_id if blank_id is None else blank_id
        with torch.no_grad():
            self.stages = [
                (SearchStage if stage.optimizer == SEARCH else GradientStage)(model, stage, self.blank_id, guides)
                for stage in self.settings
            ]
        adaptations = [stage.adaptation for stage in self.stages]
        self.parameters = {name: value for one in adaptations for name, value in one.parameters.items()}
        self.front_end = next((one.front_end for one in adaptations if one.front_end is not None), None)
        self._constant_updates = any(one.constant_updates for one in adaptations)
        self._frozen = layers_below(model, self.parameters.values())
        self._needs_teacher = any(one.loss.head for one in adaptations)

    def adapt(
        self, input_values: Tensor, start: AdaptedState | None = None, leader_labels: Tensor | None = None
    ) -> TTTOutcome:
        """Adapt to one utterance and transcribe it; the model is afterwards as it was.

        Args:
            input_values: [samples] float, normalised by the processor, on the model's device.
            start: where to start from instead of the trained model; stays as it is, and the outcome says where it ended.
            leader_labels: [L] int64, another model's transcript for the loss pseudo_labels, beside the unadapted one.
        """
        return self._adapt_rows(input_values[None], None, start, leader_labels)[0]

    def adapt_batch(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        speakers: Sequence[str | None] | None = None,
    ) -> list[TTTOutcome]:
        """Adapt to each row by itself: [B, samples] -> B outcomes. Padding, and who else is in the batch, changes nothing.

        All rows take their steps at once, each on copies of its own. Where that cannot be (a loss in chunks, a search, a
        filter of utterances, or rows of different lengths for a Transformers model), one after the other.

        Args:
            input_values: [B, samples] float, normalised by the processor.
            attention_mask: [B, samples], 1 for real samples; None: all are.
            speakers: of no importance here, where each utterance starts from the trained model.
        """
        lengths = row_lengths(input_values, attention_mask)
        ragged = len(set(lengths)) > 1
        input_values = input_values[:, : max(lengths)]
        if self._takes_batches(ragged):
            real = frames_mask(torch.tensor(lengths, device=input_values.device), max(lengths))
            padding = ~real.view(*real.shape, *[1] * (input_values.ndim - 2))
            return self._adapt_rows(input_values.masked_fill(padding, 0.0), real.long() if ragged else None)
        return [self.adapt(row[:length]) for row, length in zip(input_values, lengths, strict=True)]

    @torch.no_grad()
    def logits(self, input_values: Tensor, state: AdaptedState) -> Tensor:
        """[T, V] of one utterance [samples] with the weights of a state."""
        with self.lent_copies(1) as copies:
            copies.replace(state.weights)
            return self.model(input_values[None].clone()).logits[0]

    @torch.no_grad()
    def losses(self, utterances: Sequence[Tensor], state: AdaptedState) -> list[float]:
        """The first stage's loss of each utterance, [samples], with the weights of a state."""
        values = []
        for utterance in utterances:
            with self.lent_copies(1) as copies:
                rows, _, _ = self._look(utterance[None].clone(), None)
                copies.replace(state.weights)
                values += self.stages[0].losses(rows)
        return values

    def step_together(self, utterances: Sequence[Tensor], state: AdaptedState) -> AdaptedState:
        """A state after one step of the first stage on the mean loss of utterances, [samples] each; unchanged if that is not finite."""
        stage, total = self.stages[0], {}
        with self.lent_copies(1) as copies:
            looks = [self._look(utterance[None].clone(), None)[0] for utterance in utterances]
            self._start_from(state, copies)
            for rows in looks:
                _, gradients = stage.differentiate(rows, copies, stage.generators(1), [0])
                for name, gradient in gradients.items():
                    total[name] = total.get(name, 0.0) + gradient / len(utterances)
            if not all_finite(*total.values()):
                return state
            optimizers = self._optimizers(state)
            with torch.no_grad():
                stepped = optimizers[0].step(copies, total)
            return AdaptedState({**{name: value.detach() for name, value in copies.items()}, **stepped}, optimizers)

    def _start_from(self, state: AdaptedState, copies: Copies) -> None:
        copies.replace({name: value.clone().requires_grad_() for name, value in state.weights.items()})

    def _optimizers(self, state: AdaptedState) -> list[InnerOptimizer | SearchDistribution]:
        """One a stage, or where a search starts; those of a state go on and leave the state as it is."""
        if state.optimizers:
            return [optimizer.fork() for optimizer in state.optimizers]
        return [stage.optimizer() for stage in self.stages]

    @contextmanager
    def lent_copies(self, rows: int) -> Iterator[Copies]:
        """Inside, the model computes with copies of what adapts."""
        # A caller's inference mode would leave nothing to differentiate.
        with (
            torch.inference_mode(False),
            _uncached_autocast(next(self.model.parameters()).device),
            lent(self.model),
            constant_updates(self.model) if self._constant_updates else nullcontext(),
            remembered(self._frozen),
            parameter_copies(self.model, self.parameters, rows, self.front_end) as copies,
        ):
            yield copies

    def _takes_batches(self, ragged: bool) -> bool:
        if not takes_copies_of_rows(self.model, self.parameters):
            return False
        if any(s.chunk_size != -1 or s.optimizer == SEARCH or s.entropy_margin is not None for s in self.settings):
            return False
        return not ragged or takes_padding(self.model)

    def _adapt_rows(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None,
        start: AdaptedState | None = None,
        leader_labels: Tensor | None = None,
    ) -> list[TTTOutcome]:
        """Steps and final pass of rows that are adapted at once; only one row may have a start."""
        with self.lent_copies(len(input_values)) as copies:
            # Tensors of a caller's inference mode cannot take part in a graph.
            input_values = input_values.clone()
            attention_mask = None if attention_mask is None else attention_mask.clone()
            # Where nothing is carried on, the pass that looks at the utterance is the first step's as well.
            shared = start is None and self.stages[0].starts_from_logits
            rows, outcomes, logits = self._look(input_values, attention_mask, with_graph=shared)
            if leader_labels is not None:
                rows.pseudo_labels[0].append(leader_labels)
            self._start_from(start or AdaptedState(), copies)
            optimizers = self._optimizers(start or AdaptedState())
            for stage, optimizer in zip(self.stages, optimizers, strict=True):
                passed = {"logits": logits} if shared and stage is self.stages[0] else {}
                stage.run(rows, copies, outcomes, optimizer, **passed)
            for outcome in outcomes:
                if not outcome.steps and not (start and start.weights):
                    outcome.refuse(TOO_UNCERTAIN)
            self._look_again(rows, copies, outcomes)
            if start is not None:
                ended = {name: value.detach() for name, value in copies.items()}
                outcomes[0].state = AdaptedState(ended, optimizers)
        return outcomes

    def _look(
        self, input_values: Tensor, attention_mask: Tensor | None, with_graph: bool = False
    ) -> tuple[Rows, list[TTTOutcome], Tensor]:
        """(rows, outcomes, logits [B, T, V]) of the unadapted pass; refuses what there is nothing to learn from."""
        with torch.set_grad_enabled(with_graph):
            output = self.model(input_values, attention_mask=attention_mask, output_hidden_states=self._needs_teacher)
        lengths = self._frame_lengths(attention_mask, *output.logits.shape[:2])
        unadapted = [logits[:length] for logits, length in zip(output.logits.detach(), lengths, strict=True)]
        outcomes = [TTTOutcome(logits, logits) for logits in unadapted]
        for row, length, outcome in zip(input_values, row_lengths(input_values, attention_mask), outcomes, strict=True):
            outcome.refuse(refusal_before(row[:length], outcome.logits, self.settings, self.blank_id))
        teacher = output.hidden_states[-1].detach() if self._needs_teacher else None
        anchor_labels = [[collapse_path(logits.argmax(-1), self.blank_id)] for logits in unadapted]
        return Rows(input_values, attention_mask, lengths, teacher, anchor_labels), outcomes, output.logits

    @torch.no_grad()
    def _look_again(self, rows: Rows, copies: Copies, outcomes: list[TTTOutcome]) -> None:
        """The adapted pass; refuses what came out broken."""
        limit = min((s.max_change for s in self.settings if s.max_change is not None), default=None)
        reasons = refusals_of_weights(copies, self.parameters, limit, len(outcomes))
        for outcome, reason in zip(outcomes, reasons, strict=True):
            outcome.refuse(reason)
        if not any(outcome.adapted for outcome in outcomes):
            return
        adapted = self.model(rows.input_values, attention_mask=rows.attention_mask).logits
        for outcome, logits, length in zip(outcomes, adapted, rows.lengths, strict=True):
            outcome.refuse(refusal_after(outcome.logits_before, logits[:length], self.blank_id, self.guides.text_ids))
            if outcome.adapted:
                outcome.logits = logits[:length]

    def _frame_lengths(self, attention_mask: Tensor | None, rows: int, frames: int) -> list[int]:
        if attention_mask is None:
            return [frames] * rows
        count = getattr(self.model, "frame_lengths", None) or self.model._get_feat_extract_output_lengths
        return count(attention_mask.sum(-1)).tolist()


def row_lengths(input_values: Tensor, attention_mask: Tensor | None) -> list[int]:
    """Samples of each row of [B, samples], or frames of features, without its padding."""
    if attention_mask is None:
        return [input_values.shape[1]] * len(input_values)
    return attention_mask.sum(-1).tolist()


def _uncached_autocast(device: torch.device) -> torch.autocast:
    """The caller's autocast, without its cache: that would keep the 16-bit copies of weights that have since changed."""
    enabled = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, torch.get_autocast_dtype(device.type), enabled=enabled, cache_enabled=False)
