"""Paths of CTC: a class for each frame; the labels that a path spells, and the best path that spells given labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lact_asr.inference.decoding import CTCAlphabet, Decoder

FindPath = Callable[[Tensor], Tensor]


def collapse_path(path: Tensor, blank_id: int) -> Tensor:
    """Repeats merged, blanks dropped: [T] int64 -> [L] int64."""
    merged = torch.unique_consecutive(path)
    return merged[merged != blank_id]


def viterbi_alignment(log_probs: Tensor, labels: Tensor, blank_id: int) -> Tensor:
    """The most likely path that spells the labels (Viterbi alignment, Graves et al. 2006, with maxima for sums).

    Args:
        log_probs: [T, V] float.
        labels: [L] int64 without blanks.
        blank_id: the CTC blank.

    Returns:
        [T] int64 on the CPU.

    Raises:
        ValueError: T frames are too few to spell the labels.
    """
    states = torch.full((2 * len(labels) + 1,), blank_id)
    states[1::2] = labels.cpu()
    emissions = log_probs.detach().cpu().double()[:, states]
    may_skip = torch.zeros(len(states), dtype=torch.bool)
    may_skip[3::2] = states[3::2] != states[1:-2:2]  # the blank between two equal labels must be heard
    scores = torch.full((len(states),), -torch.inf, dtype=torch.float64)
    scores[:2] = emissions[0, :2]
    steps = []
    for emission in emissions[1:]:
        one, two = (torch.nn.functional.pad(scores, (by, 0), value=-torch.inf)[: len(scores)] for by in (1, 2))
        best, step = torch.stack([scores, one, two.masked_fill(~may_skip, -torch.inf)]).max(dim=0)
        scores = best + emission
        steps.append(step)
    state = len(states) - 1 - int(len(states) > 1 and scores[-2] > scores[-1])
    if torch.isneginf(scores[state]):
        raise ValueError(f"{len(log_probs)} frames are too few to spell {len(labels)} labels.")
    path = [state]
    for step in reversed(steps):
        path.append(path[-1] - int(step[path[-1]]))
    return states[torch.tensor(path[::-1])]


def decoder_path(decoder: Decoder, alphabet: CTCAlphabet, blank_id: int) -> FindPath:
    """A function from logits [T, V] to the path [T] of a decoder's transcript, the most likely that spells it.

    Args:
        decoder: e.g. a beam search with a language model.
        alphabet: what the columns of the logits mean.
        blank_id: the CTC blank.
    """

    def find(logits: Tensor) -> Tensor:
        log_probs = logits.detach().float().log_softmax(-1)
        labels = torch.tensor(alphabet.token_ids(decoder.decode(log_probs).text), dtype=torch.long)
        return viterbi_alignment(log_probs, labels, blank_id).to(logits.device)

    return find
