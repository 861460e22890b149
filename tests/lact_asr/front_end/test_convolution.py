"""The convolution on frames in rows and its derivatives against `Conv1d`'s, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.nn import functional

from lact_asr.front_end.convolution import convolution


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return values.requires_grad_()


@pytest.mark.parametrize("rows", [(), (2,)], ids=["shared", "copies for each row"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(1, 1, 1), (3, 2, 1), (3, 1, 1), (2, 2, 1), (2, 1, 4), (2, 5, 2), (10, 5, 1)]
)
def test_convolution_and_its_derivatives(kernel, stride, dilation, channels, rows):
    hidden, weight = normal(2, 14, channels), normal(*rows, 2, channels, kernel, seed=1)

    def convolved(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return convolution(hidden, weight, stride, dilation)

    for row in range(2):
        own_weight = weight[row] if rows else weight
        expected = functional.conv1d(hidden[row].mT, own_weight, stride=stride, dilation=dilation).mT
        torch.testing.assert_close(convolved(hidden, weight)[row], expected, atol=1e-12, rtol=0)
    assert gradcheck(convolved, (hidden, weight))
    assert gradgradcheck(convolved, (hidden, weight))


def test_convolution_takes_frames_that_lie_otherwise_in_memory():
    hidden, weight = normal(2, 3, 14).mT, normal(4, 3, 3, seed=1)
    expected = functional.conv1d(hidden.mT, weight, stride=2).mT
    torch.testing.assert_close(convolution(hidden, weight, 2, 1), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("rows", [(), (2,)], ids=["shared", "copies for each row"])
def test_convolution_and_its_derivatives_under_autocast_are_in_16_bits(rows):
    results = []
    for autocast in (True, False):
        hidden, weight = (
            t.detach().float().requires_grad_() for t in (normal(2, 41, 8), normal(*rows, 4, 8, 3, seed=1))
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            product = convolution(hidden, weight, 2, 1)
            assert product.dtype == (torch.bfloat16 if autocast else torch.float32)
            product.float().square().sum().backward()
        results.append((product.float(), hidden.grad, weight.grad))
    for in_16_bits, exact in zip(*results, strict=True):
        assert (in_16_bits - exact).norm() < 0.01 * exact.norm()  # bfloat16 keeps eight bits: 0.004


def test_one_copy_of_the_weights_serves_all_rows():
    hidden, weight = normal(3, 14, 2), normal(1, 4, 2, 3, seed=1)

    def convolved(weight: torch.Tensor) -> torch.Tensor:
        return convolution(hidden, weight, 2, 1)

    torch.testing.assert_close(convolved(weight), convolution(hidden, weight[0], 2, 1), atol=1e-12, rtol=0)
    assert gradcheck(convolved, weight)


def test_convolution_of_no_rows():
    assert convolution(torch.empty(0, 14, 3), torch.empty(4, 3, 3), 2, 1).shape == (0, 6, 4)


@pytest.mark.parametrize("rows", [(), (2,)], ids=["shared", "copies for each row"])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (2, 1, 4)])
def test_operators_are_what_compilers_expect(kernel, stride, dilation, rows):
    hidden, taps = normal(2, 14, 3), normal(*rows, kernel, 3, 4, seed=1)
    arguments = hidden, taps, stride, dilation
    opcheck(torch.ops.lact_asr.convolution, arguments)
    gradient = torch.ops.lact_asr.convolution(*arguments).detach()
    for derivative in (torch.ops.lact_asr.convolution_of_hidden, torch.ops.lact_asr.convolution_of_taps):
        with torch.no_grad():  # not differentiable: where derivatives are, the backward pass runs what they run
            opcheck(derivative, (gradient, *arguments), test_utils=("test_schema", "test_faketensor"))
