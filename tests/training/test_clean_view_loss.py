"""The divergence from the clean view: by hand, row by row, and without a gradient to what teaches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lact_asr.training.clean_view_loss import clean_view_divergence

LENGTHS = torch.tensor([5, 2])


@pytest.fixture
def views() -> tuple[Tensor, Tensor]:
    """Noisy and clean logits, [2, 5, 4] float64."""
    torch.manual_seed(0)
    noisy, clean = torch.randn(2, 2, 5, 4, dtype=torch.float64).unbind()
    return noisy.requires_grad_(), clean.requires_grad_()


def by_hand(noisy: Tensor, clean: Tensor) -> Tensor:
    """Σ_v p log(p / q) of every frame by itself."""
    rows = []
    for row, length in enumerate(LENGTHS.tolist()):
        frames = []
        for frame in range(length):
            p = clean[row, frame].exp() / clean[row, frame].exp().sum()
            q = noisy[row, frame].exp() / noisy[row, frame].exp().sum()
            frames.append(sum(p[label].detach() * torch.log(p[label].detach() / q[label]) for label in range(4)))
        rows.append(sum(frames) / length)
    return sum(rows) / len(rows)


def test_value_and_gradient_by_hand(views):
    noisy, clean = views
    found, expected = clean_view_divergence(noisy, clean, LENGTHS), by_hand(noisy, clean)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = [torch.autograd.grad(value, noisy, retain_graph=True)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)
    assert torch.autograd.grad(found, clean, allow_unused=True) == (None,)


def test_padding_is_never_looked_at(views):
    noisy, clean = (view.detach().clone() for view in views)
    expected = clean_view_divergence(noisy, clean, LENGTHS)
    noisy[1, 2:], clean[1, 2:] = math.nan, math.inf
    noisy.requires_grad_()
    found = clean_view_divergence(noisy, clean, LENGTHS)
    assert torch.equal(found, expected)
    found.backward()
    assert noisy.grad.isfinite().all()


def test_equal_views_cost_nothing(views):
    noisy, _ = views
    divergence = clean_view_divergence(noisy, noisy, LENGTHS)
    divergence.backward()
    assert divergence.item() == 0.0
    assert noisy.grad.abs().max() < 1e-7
