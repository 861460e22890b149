"""Paths of CTC against all paths that there are."""

from __future__ import annotations

import itertools

import pytest
import torch

from lact_asr.inference.alignment.ctc_paths import collapse_path, decoder_path, viterbi_alignment
from lact_asr.inference.decoding import CTCAlphabet, GreedyDecoder

BLANK = 0


@pytest.mark.parametrize(
    ("path", "labels"), [([], []), ([0, 0], []), ([1, 1, 0, 1, 2, 2, 0], [1, 1, 2]), ([3, 2, 3], [3, 2, 3])]
)
def test_repeats_are_merged_and_blanks_dropped(path, labels):
    assert collapse_path(torch.tensor(path, dtype=torch.long), BLANK).tolist() == labels


@pytest.mark.parametrize("labels", [[], [1], [1, 2], [1, 1], [2, 1, 2]])
def test_the_best_path_of_all_that_spell_the_labels(labels):
    log_probs = torch.randn(5, 3, generator=torch.Generator().manual_seed(len(labels))).log_softmax(-1)
    scores = {
        path: sum(log_probs[frame, label].item() for frame, label in enumerate(path))
        for path in itertools.product(range(3), repeat=5)
        if collapse_path(torch.tensor(path), BLANK).tolist() == labels
    }
    assert len(scores) > 1 or not labels
    found = viterbi_alignment(log_probs, torch.tensor(labels, dtype=torch.long), BLANK)
    assert tuple(found.tolist()) == max(scores, key=scores.get)


def test_labels_that_do_not_fit():
    with pytest.raises(ValueError, match="2 frames are too few to spell 2 labels"):
        viterbi_alignment(torch.zeros(2, 3), torch.tensor([1, 1]), BLANK)


def test_the_path_of_a_decoders_transcript():
    vocabulary = {"<pad>": 0, "<s>": 1, "|": 2, "A": 3, "B": 4}
    logits = torch.zeros(6, 5)
    for frame, label in enumerate([3, 0, 3, 2, 4, 4]):
        logits[frame, label] = 5.0
    logits[1, 1] = 6.0  # a special token is no text, and no part of the path
    path = decoder_path(GreedyDecoder(vocabulary, BLANK), CTCAlphabet(vocabulary, BLANK), BLANK)(logits)
    assert path.tolist() == [3, 0, 3, 2, 4, 4]
