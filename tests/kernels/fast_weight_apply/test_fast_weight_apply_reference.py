"""The fast network's forward pass against one token at a time."""

from __future__ import annotations

import math

import pytest
import torch

from lact_asr.kernels.fast_weight_apply.reference import fast_weight_apply


def random_weights(*batch: int, dim: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((*batch, width, dim), (*batch, dim, width), (*batch, width, dim))
    return tuple(torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes)


def apply_to_one_token(w0: list, w1: list, w2: list, token: list[float]) -> list[float]:
    """f_W(x) = W1 (SiLU(W0 x) ⊙ (W2 x)) in plain Python."""
    hidden = []
    for gate_row, up_row in zip(w0, w2, strict=True):
        gate = sum(weight * value for weight, value in zip(gate_row, token, strict=True))
        up = sum(weight * value for weight, value in zip(up_row, token, strict=True))
        hidden.append(gate / (1 + math.exp(-gate)) * up)
    return [sum(weight * value for weight, value in zip(row, hidden, strict=True)) for row in w1]


@pytest.mark.parametrize(("batch", "tokens", "dim", "width"), [((), 4, 3, 5), ((2,), 1, 4, 2), ((2, 3), 5, 2, 7)])
def test_equals_one_token_at_a_time(batch, tokens, dim, width):
    weights = random_weights(*batch, dim=dim, width=width)
    queries = torch.randn(*batch, tokens, dim, dtype=torch.float64)
    result = fast_weight_apply(weights, queries)
    assert result.shape == queries.shape
    matrices = [weight.reshape(-1, *weight.shape[-2:]).tolist() for weight in weights]
    for index, rows in enumerate(queries.reshape(-1, tokens, dim).tolist()):
        expected = [apply_to_one_token(*(matrix[index] for matrix in matrices), row) for row in rows]
        # 1e-12: sums of a few float64 products in another order
        torch.testing.assert_close(
            result.reshape(-1, tokens, dim)[index], torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=1e-12
        )


def test_weights_of_one_row_serve_a_whole_batch():
    weights = random_weights(1, 2, dim=4, width=6)
    queries = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    copied = tuple(weight.expand(3, *weight.shape[1:]).contiguous() for weight in weights)
    torch.testing.assert_close(fast_weight_apply(weights, queries), fast_weight_apply(copied, queries))


def test_no_tokens():
    assert fast_weight_apply(random_weights(2, dim=4, width=6), torch.zeros(2, 0, 4, dtype=torch.float64)).shape == (
        2,
        0,
        4,
    )


def test_first_and_second_derivatives():
    weights = random_weights(1, 2, dim=2, width=3)
    queries = torch.randn(2, 2, 3, 2, dtype=torch.float64)
    inputs = tuple(tensor.requires_grad_() for tensor in (*weights, queries))

    def function(w0, w1, w2, q):
        return fast_weight_apply((w0, w1, w2), q)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)
