"""The norm over time and its derivatives against PyTorch's group norm of each row, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from lact_asr.front_end.channel_norm import channel_norm_over_time

EPS = 1e-5


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return values.requires_grad_()


@pytest.mark.parametrize("rows", [(), (3,)], ids=["shared", "copies for each row"])
@pytest.mark.parametrize("lengths", [None, (7, 4, 2)])
def test_channel_norm_is_group_norm_of_each_rows_valid_frames(lengths, rows):
    hidden, weight, bias = normal(3, 7, 2), normal(*rows, 2, seed=1), normal(*rows, 2, seed=2)
    valid = None if lengths is None else torch.arange(7) < torch.tensor(lengths)[:, None]
    normalised = channel_norm_over_time(hidden, weight, bias, EPS, valid)
    for row, length in enumerate(lengths or (7, 7, 7)):
        own_weight, own_bias = (parameter[row] if rows else parameter for parameter in (weight, bias))
        expected = functional.group_norm(hidden[row, :length].mT[None], 2, own_weight, own_bias, EPS)[0].mT
        torch.testing.assert_close(normalised[row, :length], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("rows", [(), (2,)], ids=["shared", "copies for each row"])
def test_derivatives_of_channel_norm(rows):
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])

    def norm(*tensors: torch.Tensor) -> torch.Tensor:
        return channel_norm_over_time(*tensors, EPS, valid)

    arguments = normal(2, 5, 3), normal(*rows, 3, seed=1), normal(*rows, 3, seed=2)
    assert gradcheck(norm, arguments)
    assert gradgradcheck(norm, arguments)
