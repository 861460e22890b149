"""The hand-derived gradients of the inner loss against autograd, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from lact_asr.kernels.fast_weight_apply.reference import fast_weight_apply
from lact_asr.kernels.fast_weight_gradients.reference import (
    fast_weight_gradients,
    inner_objective,
    sum_of_outer_products,
)

# batch dimensions of the weights and of the tokens, tokens, d, dh
CASES = [
    ((), (), 1, 1, 1),
    ((), (), 7, 3, 5),
    ((2,), (2,), 4, 5, 3),
    ((2, 3), (2, 3), 6, 4, 9),
    ((1, 3), (2, 3), 6, 4, 9),  # one row's initial weights for a whole batch
    ((), (2, 3), 5, 2, 4),
]


def random_case(weight_batch, token_batch, tokens, dim, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator)

    weights = (
        normal(*weight_batch, width, dim), normal(*weight_batch, dim, width), normal(*weight_batch, width, dim)
    )  # fmt: skip
    rates = torch.rand((*token_batch, tokens, 3), dtype=dtype, generator=generator)
    return weights, normal(*token_batch, tokens, dim), normal(*token_batch, tokens, dim), rates


def autograd_gradients(weights, keys, values, rates):
    """Each weight's own copy for each row, and its own learning rate in the sum: Σ_t η_t ⟨f_W(k_t), v_t⟩."""
    batch = keys.shape[:-2]
    copies = [weight.expand(*batch, *weight.shape[-2:]).detach().clone().requires_grad_() for weight in weights]
    gradients = []
    for index, copy in enumerate(copies):
        objective = (rates[..., index] * (fast_weight_apply(tuple(copies), keys) * values).sum(-1)).sum()
        gradients += torch.autograd.grad(objective, copy)
    return gradients


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equal_to_autograd_of_the_inner_loss(case):
    arguments = random_case(*case)
    gradients = fast_weight_gradients(*arguments)
    for mine, expected in zip(gradients, autograd_gradients(*arguments), strict=True):
        # 1e-12: the same few float64 products, summed in another order
        torch.testing.assert_close(mine, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_objective_is_what_the_network_says(case):
    weights, keys, values, _ = random_case(*case)
    expected = (fast_weight_apply(weights, keys) * values).sum(-1)
    objective = inner_objective(weights, keys, values)
    assert objective.shape == keys.shape[:-1]
    torch.testing.assert_close(objective, expected, atol=1e-12, rtol=1e-12)


def test_a_small_step_along_them_raises_the_objective():
    weights, keys, values, rates = random_case((), (), 7, 3, 5)
    rates = torch.ones_like(rates)
    gradients = fast_weight_gradients(weights, keys, values, rates)
    stepped = tuple(weight + 1e-6 * gradient for weight, gradient in zip(weights, gradients, strict=True))
    gain = (inner_objective(stepped, keys, values) - inner_objective(weights, keys, values)).sum()
    expected = 1e-6 * sum(gradient.square().sum() for gradient in gradients)
    assert gain.item() == pytest.approx(expected.item(), rel=1e-3)  # the second order of a step of 1e-6


def test_tokens_with_rate_zero_are_as_if_absent():
    weights, keys, values, rates = random_case((2,), (2,), 6, 4, 5)
    rates[:, 4:] = 0
    keys[:, 4:], values[:, 4:] = 1e6, -1e6
    expected = fast_weight_gradients(weights, keys[:, :4], values[:, :4], rates[:, :4])
    for mine, other in zip(fast_weight_gradients(weights, keys, values, rates), expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-12)


def test_each_rate_reaches_its_own_weight_only():
    weights, keys, values, rates = random_case((), (), 5, 3, 4)
    for index in range(3):
        only = torch.zeros_like(rates)
        only[..., index] = rates[..., index]
        nonzero = [bool(gradient.any()) for gradient in fast_weight_gradients(weights, keys, values, only)]
        assert nonzero == [index == position for position in range(3)]


@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_float32_stays_close_even_where_the_sigmoid_saturates(scale):
    weights, keys, values, rates = random_case((2,), (2,), 8, 6, 10)
    keys = scale * keys
    expected = fast_weight_gradients(weights, keys, values, rates)
    arguments = (tuple(weight.float() for weight in weights), keys.float(), values.float(), rates.float())
    for mine, other in zip(fast_weight_gradients(*arguments), expected, strict=True):
        assert torch.isfinite(mine).all()
        # 1e-5 of the largest entry: float32 rounding of sums of some ten products
        assert (mine.double() - other).abs().max() < 1e-5 * other.abs().max()


def test_one_token_with_numbers_small_enough_to_check_by_hand():
    """d = dh = 1, W0 = 1, W1 = 2, W2 = 3, k = 1, v = 1, η = 1: f = 2 SiLU(1) 3."""
    one, sigmoid = torch.ones(1, 1, dtype=torch.float64), 1 / (1 + math.exp(-1.0))
    gradients = fast_weight_gradients((one, 2 * one, 3 * one), one, one, torch.ones(1, 3, dtype=torch.float64))
    expected = (2 * 3 * (sigmoid + sigmoid * (1 - sigmoid)), sigmoid * 3, 2 * sigmoid)
    assert [gradient.item() for gradient in gradients] == pytest.approx(expected, rel=1e-12)


def test_first_and_second_derivatives():
    weights, keys, values, rates = random_case((1,), (2,), 3, 2, 3)
    inputs = tuple(tensor.requires_grad_() for tensor in (*weights, keys, values, rates))

    def function(w0, w1, w2, k, v, eta):
        return fast_weight_gradients((w0, w1, w2), k, v, eta)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_a_backward_pass_under_autocast_is_the_same():
    """Training through a step of test-time training differentiates inside of autocast."""
    left, right, outer = (torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    left, right, outer = left.requires_grad_(), right.requires_grad_(), outer[:, :6]
    expected = torch.autograd.grad(sum_of_outer_products(left, right), (left, right), outer)
    result = sum_of_outer_products(left, right)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(result, (left, right), outer)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
