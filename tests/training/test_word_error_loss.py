"""Expected word errors: against every transcript written out, and where the gradient points."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from lact_asr.inference.alignment.ctc_paths import collapse_path
from lact_asr.metrics import count_word_errors
from lact_asr.training import word_error_loss
from lact_asr.training.word_error_loss import expected_word_errors

BLANK, DELIMITER = 0, 1
LETTERS = {DELIMITER: " ", 2: "a", 3: "b"}


def spell(labels: tuple[int, ...]) -> str:
    return "".join(LETTERS[label] for label in labels)


def by_enumeration(logits: Tensor, reference: str) -> Tensor:
    """Σ P(y) E(y) over all transcripts of one utterance [T, V], from all of its V^T paths."""
    log_probs = logits.log_softmax(-1)
    likelihoods: dict[tuple[int, ...], Tensor] = {}
    for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        labels = tuple(collapse_path(torch.tensor(path), BLANK).tolist())
        likelihood = torch.stack([log_probs[frame, label] for frame, label in enumerate(path)]).sum().exp()
        likelihoods[labels] = likelihoods.get(labels, 0.0) + likelihood
    return sum(value * count_word_errors(reference, spell(labels)).errors for labels, value in likelihoods.items())


def peaked_logits(labels: list[int], sureness: float) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(labels), 4).float() * sureness


def test_it_is_the_expectation_where_every_transcript_is_drawn(monkeypatch):
    monkeypatch.setattr(word_error_loss, "HYPOTHESES", 1_500)
    torch.manual_seed(0)
    logits = (0.3 * torch.randn(1, 3, 4)).requires_grad_()
    reference = torch.tensor([[2, DELIMITER, 3]])
    found = expected_word_errors(logits, torch.tensor([3]), reference, BLANK, DELIMITER)
    expected = by_enumeration(logits[0], "a b") / 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_rows_are_counted_over_all_words_and_padding_never_looked_at():
    torch.manual_seed(0)
    right, wrong = peaked_logits([2, DELIMITER, 3], 40.0), peaked_logits([3, BLANK, BLANK], 40.0)
    logits = torch.stack([right, wrong])
    lengths, labels = torch.tensor([3, 1]), torch.tensor([[2, DELIMITER, 3], [2, -100, -100]])
    assert expected_word_errors(logits, lengths, labels, BLANK, DELIMITER).item() == pytest.approx(1 / 3)
    logits[1, 1:] = math.nan
    assert expected_word_errors(logits, lengths, labels, BLANK, DELIMITER).item() == pytest.approx(1 / 3)


def test_its_gradient_leads_to_fewer_errors():
    torch.manual_seed(0)
    logits = peaked_logits([2, DELIMITER, 2], 1.0)[None].requires_grad_()  # the reference ends in b, class 3
    lengths, labels = torch.tensor([3]), torch.tensor([[2, DELIMITER, 3]])
    optimizer = torch.optim.SGD([logits], lr=2.0)
    for _ in range(60):
        optimizer.zero_grad()
        expected_word_errors(logits, lengths, labels, BLANK, DELIMITER).backward()
        optimizer.step()
    assert spell(tuple(collapse_path(logits[0].argmax(-1), BLANK).tolist())) == "a b"


def test_no_words_no_errors():
    logits = torch.zeros(1, 2, 4)
    labels = torch.full((1, 1), -100)
    sure = peaked_logits([BLANK, BLANK], 40.0)[None]
    assert expected_word_errors(sure, torch.tensor([2]), labels, BLANK, DELIMITER).item() == pytest.approx(0)
    assert expected_word_errors(logits, torch.tensor([2]), labels, BLANK, DELIMITER).isfinite()
