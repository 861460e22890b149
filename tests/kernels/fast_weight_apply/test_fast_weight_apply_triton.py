"""Triton's forward pass of the fast network against the reference in float64; in the interpreter without a GPU."""

from __future__ import annotations

import pytest
import torch

from lact_asr.kernels.fast_weight_apply.reference import fast_weight_apply as reference

# float32 on a GPU is three TF32 products, whose sums may be cut off and not rounded.
TOLERANCE = {torch.float32: 5e-6, torch.float16: 3e-3}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(rows: int, heads: int, num_tokens: int, d: int, dh: int, shared: bool = True) -> tuple[tuple, torch.Tensor]:
    lead = (1 if shared else rows, heads)
    weights = tuple(0.3 * normal(*lead, *shape, seed=i) for i, shape in enumerate([(dh, d), (d, dh), (dh, d)]))
    return weights, normal(rows, heads, num_tokens, d, seed=3)


@pytest.fixture
def fast_weight_apply(device):
    from lact_asr.kernels.fast_weight_apply.operation import fast_weight_apply

    return lambda weights, queries: fast_weight_apply(tuple(w.to(device) for w in weights), queries.to(device))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("num_tokens", "d", "dh"), [(37, 24, 40), (1, 12, 20), (16, 16, 16), (70, 33, 65), (0, 8, 12)])
def test_forward(fast_weight_apply, num_tokens, d, dh, shared, dtype, relative_error):
    weights, queries = inputs(2, 2, num_tokens, d, dh, shared)
    weights, queries = tuple(w.to(dtype) for w in weights), queries.to(dtype)
    found = fast_weight_apply(weights, queries)
    assert found.dtype == dtype
    expected = reference(tuple(w.double() for w in weights), queries.double())
    assert relative_error(found, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("scale", [0.05, 20.0])
def test_small_queries_and_gates_that_saturate(fast_weight_apply, scale, dtype, relative_error):
    weights, queries = inputs(1, 2, 9, 24, 40)
    weights, queries = tuple(w.to(dtype) for w in weights), (scale * queries).to(dtype)
    expected = reference(tuple(w.double() for w in weights), queries.double())
    assert relative_error(fast_weight_apply(weights, queries), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("shared", [True, False])
def test_backward_and_second_derivative(fast_weight_apply, shared, relative_error):
    weights, queries = inputs(2, 2, 7, 5, 6, shared)

    def run(function, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in (*weights, queries)]
        found = function(tuple(leaves[:3]), leaves[3]).cpu().sin().sum()
        plain = torch.autograd.grad(found, leaves, retain_graph=True)
        (first,) = torch.autograd.grad(found, leaves[3], create_graph=True)
        return [*plain, *torch.autograd.grad(first.square().sum(), leaves)]

    for mine, exact in zip(run(fast_weight_apply, torch.float32), run(reference, torch.float64), strict=True):
        assert relative_error(mine, exact) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "d"), [(4, 192), (1, 768)])
def test_bfloat16_is_no_worse_than_plain_bfloat16(needs_gpu, fast_weight_apply, heads, d, relative_error):
    weights, queries = inputs(2, heads, 800, d, 1536)
    weights, queries = tuple((w / 10).bfloat16() for w in weights), queries.bfloat16()
    expected = reference(tuple(w.double() for w in weights), queries.double())
    plain = reference(tuple(w.to(needs_gpu) for w in weights), queries.to(needs_gpu))
    assert relative_error(fast_weight_apply(weights, queries), expected) < 1.1 * relative_error(plain, expected)
