"""The forward pass that keeps everything of width dh on chip, and its backward, against the reference in float64.

The operator takes these kernels for 16 bits only; in float32 they are called directly, to be compared more sharply.
"""

from __future__ import annotations

import pytest
import torch

from lact_asr.kernels.fast_weight_apply.reference import fast_weight_apply as reference

SHAPES = [
    (37, 24, 40),
    (1, 12, 20),
    (70, 70, 65),
    (33, 192, 48),
]  # tokens, d, dh: one, two and three chunks of features


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(count: int, num_tokens: int, d: int, dh: int, weight_count: int) -> tuple[tuple, torch.Tensor]:
    shapes = [(dh, d), (d, dh), (dh, d)]
    weights = tuple(normal(weight_count, *shape, seed=i) / d**0.5 for i, shape in enumerate(shapes))
    return weights, normal(count, num_tokens, d, seed=3)


@pytest.mark.parametrize(("num_tokens", "d", "dh"), SHAPES)
def test_forward_and_queries_derivative_in_float32(device, num_tokens, d, dh, relative_error):
    from lact_asr.kernels.fast_weight_apply import on_chip

    weights, queries = inputs(4, num_tokens, d, dh, weight_count=2)
    upstream = normal(4, num_tokens, d, seed=4)
    leaf = queries.double().requires_grad_()
    expected = reference(tuple(w.double().repeat(2, 1, 1) for w in weights), leaf)
    (derivative,) = torch.autograd.grad(expected, leaf, upstream.double())
    placed = (tuple(w.to(device) for w in weights), queries.to(device))
    assert relative_error(on_chip.fast_weight_apply(*placed), expected) < 5e-6
    assert relative_error(on_chip.queries_derivative(*placed, upstream.to(device)), derivative) < 5e-6


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("wanted", [range(4), range(3), [3]], ids=str)
def test_the_operators_backward_in_16_bits(device, shared, wanted, relative_error):
    from lact_asr.kernels.fast_weight_apply.operation import fast_weight_apply

    weights, queries = inputs(4, 21, 40, 24, weight_count=4)
    weights = [w.view(2, 2, *w.shape[1:])[: 1 if shared else 2].half() for w in weights]
    queries = queries.view(2, 2, *queries.shape[1:]).half()

    def run(function, dtype: torch.dtype, where: str) -> list[torch.Tensor]:
        leaves = [t.to(where, dtype).requires_grad_(i in wanted) for i, t in enumerate((*weights, queries))]
        loss = function(tuple(leaves[:3]), leaves[3]).to(torch.float64).sin().sum()
        return torch.autograd.grad(loss, [leaf for leaf in leaves if leaf.requires_grad])

    exact = run(reference, torch.float64, "cpu")
    for mine, expected in zip(run(fast_weight_apply, torch.float16, device), exact, strict=True):
        assert mine.dtype == torch.float16
        assert relative_error(mine, expected) < 5e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])  # on chip, and by hidden arrays
def test_weights_of_different_batch_dimensions(device, dtype, relative_error):
    from lact_asr.kernels.fast_weight_apply.operation import fast_weight_apply

    (w0, w1, w2), queries = inputs(6, 21, 16, 24, weight_count=6)
    weights = [w0.view(3, 2, 24, 16), w1.view(3, 2, 16, 24)[:1], w2[0]]
    weights, queries = [w.to(dtype).requires_grad_() for w in weights], queries.view(3, 2, 21, 16).to(dtype)
    expected = reference(tuple(w.double() for w in weights), queries.double())
    found = fast_weight_apply(tuple(w.to(device) for w in weights), queries.to(device))
    assert relative_error(found, expected) < 2e-3
    exact = torch.autograd.grad(expected.sin().sum(), weights)
    for mine, other in zip(torch.autograd.grad(found.double().cpu().sin().sum(), weights), exact, strict=True):
        assert relative_error(mine, other) < 5e-3


def test_no_tokens(device):
    from lact_asr.kernels.fast_weight_apply.operation import fast_weight_apply

    weights, queries = inputs(2, 0, 8, 12, weight_count=2)
    leaves = [t.half().to(device).requires_grad_() for t in (*weights, queries)]
    found = torch.autograd.grad(fast_weight_apply(tuple(leaves[:3]), leaves[3]).sum(), leaves)
    assert all(
        gradient.shape == leaf.shape and not gradient.any() for gradient, leaf in zip(found, leaves, strict=True)
    )


@pytest.mark.gpu
def test_bfloat16_backward_is_no_worse_than_plain_bfloat16(needs_gpu, relative_error):
    from lact_asr.kernels.fast_weight_apply.operation import fast_weight_apply

    weights, queries = inputs(8, 800, 192, 1536, weight_count=8)
    weights, queries = tuple(w.bfloat16() for w in weights), queries.bfloat16()
    upstream = normal(8, 800, 192, seed=4).bfloat16()

    def run(function, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [t.to(needs_gpu, dtype).requires_grad_() for t in (*weights, queries)]
        return torch.autograd.grad(function(tuple(leaves[:3]), leaves[3]), leaves, upstream.to(needs_gpu, dtype))

    found, plain = run(fast_weight_apply, torch.bfloat16), run(reference, torch.bfloat16)
    for mine, other, exact in zip(found, plain, run(reference, torch.float64), strict=True):
        assert relative_error(mine, exact) < 1.1 * relative_error(other, exact)
