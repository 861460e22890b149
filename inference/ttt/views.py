"""What the losses of one step of test-time training may look at: passes of the model that are run when first asked for, and shared."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lact_asr.inference.alignment.ctc_paths import FindPath, collapse_path
from lact_asr.inference.ttt.statistics import FeatureStatistics
from lact_asr.masking import span_mask
from lact_asr.ttt_parameters import output_features


@dataclass(frozen=True)
class Rows:
    """Utterances that are adapted at once.

    Attributes:
        input_values: [B, samples].
        attention_mask: [B, samples], 1 for real samples; None where all are.
        lengths: frames of each row.
        teacher: [B, T, D], last hidden states of the unadapted, unmasked pass; None where no objective asks for them.
        pseudo_labels: for each row the transcripts, [L] int64 each, that `pseudo_label_loss` aims at; empty: the greedy ones.
    """

    input_values: Tensor
    attention_mask: Tensor | None
    lengths: list[int] = field(default_factory=list)
    teacher: Tensor | None = None
    pseudo_labels: list[list[Tensor]] = field(default_factory=list)


@dataclass(frozen=True)
class Guides:
    """What some objectives need beside the model and the utterance.

    Attributes:
        find_path: from logits [T, V] to a decoder's path [T]; None: the greedy path.
        statistics: of features in training.
        text_ids: int64, the classes that spell text, for `lact_asr.inference.ttt.safeguards`; None: all but the blank.
    """

    find_path: FindPath | None = None
    statistics: FeatureStatistics | None = None
    text_ids: Tensor | None = None


class StepView:
    """What the objectives of one step may look at. A pass is run when first asked for, and shared.

    Args:
        model: called as ``model(input_values, attention_mask=…)``.
        rows: the utterances, or one piece of them.
        teacher: [B, T, D], last hidden states of the unadapted, unmasked pass; None where no objective asks for them.
        draw_mask: draws a mask [B, T] bool, another at each call.
        blank_id: the CTC blank.
        shufflers: for the control whose targets are shuffled, each row's source of randomness.
        logits: [B, T, V] of the unmasked pass, where it has been run already.
        guides: what some objectives need.
    """

    def __init__(
        self, model: nn.Module, rows: Rows, teacher: Tensor | None, draw_mask: Callable[[], Tensor], blank_id: int,
        shufflers: list[torch.Generator] | None = None, logits: Tensor | None = None, guides: Guides = Guides(),
    ) -> None:  # fmt: skip
        self.model, self.rows, self.blank_id, self.shufflers = model, rows, blank_id, shufflers
        self._teacher, self._draw_mask, self._masks, self._logits = teacher, draw_mask, [], logits
        self.guides = guides

    @property
    def teacher(self) -> Tensor | None:
        """[B, T, D]; with shuffled targets each row's frames are in another order."""
        if self._teacher is None or self.shufflers is None:
            return self._teacher
        rows = self._cut(self._teacher)
        return pad_sequence([row[self.order(index)] for index, row in enumerate(rows)], batch_first=True)

    def order(self, row: int) -> Tensor:
        """A random order of a row's frames."""
        order = torch.randperm(self.rows.lengths[row], generator=self.shufflers[row])
        return order.to(self.rows.input_values.device)

    @functools.cached_property
    def logits(self) -> list[Tensor]:
        """[T, V] of each row, with gradients."""
        if self._logits is None:
            self._logits = self.model(self.rows.input_values, attention_mask=self.rows.attention_mask).logits
        return self._cut(self._logits)

    @functools.cached_property
    def observed(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """(logits [T, V], features [T, C], hidden states [L, T, D]) of each row, with gradients, by one pass."""
        with output_features(self.model) as captured:
            output = self.model(
                self.rows.input_values, attention_mask=self.rows.attention_mask, output_hidden_states=True
            )
        self._logits = output.logits if self._logits is None else self._logits
        hidden_states = torch.stack(output.hidden_states, dim=1)  # [B, L, T, D]
        by_row = [hidden[:, :length] for hidden, length in zip(hidden_states, self.rows.lengths, strict=True)]
        return self._cut(output.logits), self._cut(captured[0]), by_row

    def path(self, row: int) -> Tensor | None:
        """[T] int64, a decoder's path through the current logits; None without a decoder."""
        find = self.guides.find_path
        return None if find is None else find(self.logits[row])

    def pseudo_labels(self, row: int) -> list[Tensor]:
        """The transcripts, [L] int64 each, that a row is to learn."""
        if self.rows.pseudo_labels:
            return self.rows.pseudo_labels[row]
        return [collapse_path(self.logits[row].argmax(-1), self.blank_id)]

    def mask(self, number: int) -> Tensor:
        """One of this step's masks, [B, T] bool; number 0 is that of masked prediction."""
        while len(self._masks) <= number:
            self._masks.append(self._draw_mask())
        return self._masks[number]

    def masked_logits(self, number: int) -> list[Tensor]:
        """[T, V] of each row under one of the masks, with gradients."""
        output = self.model(
            self.rows.input_values, attention_mask=self.rows.attention_mask, masked_frames=self.mask(number)
        )
        return self._cut(output.logits)

    def _cut(self, frames: Tensor) -> list[Tensor]:
        return [row[:length] for row, length in zip(frames, self.rows.lengths, strict=True)]


def draw_row_masks(
    lengths: list[int], frames: int, probability: float, span: int, generators: list[torch.Generator], device
) -> Tensor:
    """One mask [B, frames] bool; each row draws from its own generator, as it would alone."""
    masks = [
        span_mask(torch.tensor([length]), frames, probability, span, generator)
        for length, generator in zip(lengths, generators, strict=True)
    ]
    return torch.cat(masks).to(device)
