"""Triton's inner gradients against the reference in float64, forward and backward; in the interpreter without a GPU."""

from __future__ import annotations

import pytest
import torch

from lact_asr.kernels.fast_weight_gradients.reference import fast_weight_gradients as reference

# Of the gradients' own scale. float32 on a GPU is three TF32 products, whose sums may be cut off and not rounded.
TOLERANCE = {torch.float32: 5e-6, torch.float16: 3e-3}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(rows: int, heads: int, num_tokens: int, d: int, dh: int, shared: bool = True) -> tuple[tuple, list]:
    """Weights, and [keys, values, learning rates]."""
    lead = (1 if shared else rows, heads)
    weights = tuple(0.3 * normal(*lead, *shape, seed=i) for i, shape in enumerate([(dh, d), (d, dh), (dh, d)]))
    tokens = [normal(rows, heads, num_tokens, d, seed=3), normal(rows, heads, num_tokens, d, seed=4)]
    return weights, [*tokens, torch.rand(rows, heads, num_tokens, 3, generator=torch.Generator().manual_seed(5))]


@pytest.fixture
def fast_weight_gradients(device):
    from lact_asr.kernels.fast_weight_gradients.operation import fast_weight_gradients

    return lambda weights, *tokens: fast_weight_gradients(
        tuple(w.to(device) for w in weights), *(None if t is None else t.to(device) for t in tokens)
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("num_tokens", "d", "dh"), [(37, 24, 40), (1, 12, 20), (16, 16, 16), (70, 33, 65)])
def test_forward(fast_weight_gradients, num_tokens, d, dh, shared, dtype, relative_error):
    weights, tokens = inputs(2, 2, num_tokens, d, dh, shared)
    weights, tokens = tuple(w.to(dtype) for w in weights), [t.to(dtype) for t in tokens]
    found = fast_weight_gradients(weights, *tokens)
    expected = reference(tuple(w.double() for w in weights), *(t.double() for t in tokens))
    for mine, exact in zip(found, expected, strict=True):
        assert mine.dtype == dtype
        assert relative_error(mine, exact) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_padding_of_any_content_changes_nothing(fast_weight_gradients, dtype, relative_error):
    weights, tokens = inputs(3, 2, 37, 24, 40)
    weights, tokens = tuple(w.to(dtype) for w in weights), [t.to(dtype) for t in tokens]
    lengths = torch.tensor([37, 5, 0])
    for tensor in tokens:
        tensor[1, :, 5:] = float("nan")
        tensor[2] = float("inf")
        tensor.requires_grad_()
    together = fast_weight_gradients(weights, *tokens, lengths)
    for row, length in enumerate(lengths.tolist()):
        real = (t[row : row + 1, :, :length].double() for t in tokens)
        for mine, expected in zip(together, reference(tuple(w.double() for w in weights), *real), strict=True):
            if length == 0:
                assert mine[row].abs().max() == 0
            else:
                assert relative_error(mine[row : row + 1], expected) < TOLERANCE[dtype]
    for derivative in torch.autograd.grad(sum(g.float().sum() for g in together), tokens):
        assert derivative.isfinite().all()
        assert not derivative[1, :, 5:].any()
        assert not derivative[2].any()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gates_that_saturate(fast_weight_gradients, dtype, relative_error):
    weights, (keys, *others) = inputs(1, 2, 9, 24, 40)
    weights, tokens = tuple(w.to(dtype) for w in weights), [t.to(dtype) for t in (20 * keys, *others)]
    found = fast_weight_gradients(weights, *tokens)
    expected = reference(tuple(w.double() for w in weights), *(t.double() for t in tokens))
    for mine, exact in zip(found, expected, strict=True):
        assert relative_error(mine, exact) < TOLERANCE[dtype]


def test_the_reference_ignores_padding_too(relative_error):
    weights, tokens = inputs(2, 2, 9, 6, 10)
    clean = [t.clone() for t in tokens]
    for tensor in tokens:
        tensor[1, :, 4:] = float("nan")
    alone = reference(weights, *(t[1:, :, :4] for t in clean))
    for mine, expected in zip(reference(weights, *tokens, torch.tensor([9, 4])), alone, strict=True):
        assert relative_error(mine[1:], expected) < 1e-6


@pytest.mark.parametrize("shared", [True, False])
def test_backward(fast_weight_gradients, shared, relative_error):
    weights, tokens = inputs(2, 2, 13, 8, 12, shared)
    lengths = torch.tensor([13, 6])

    def run(function, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in (*weights, *tokens)]
        found = function(tuple(leaves[:3]), *leaves[3:], lengths)
        return torch.autograd.grad(sum(g.cpu().sin().sum() for g in found), leaves)

    for mine, exact in zip(run(fast_weight_gradients, torch.float32), run(reference, torch.float64), strict=True):
        assert relative_error(mine, exact) < 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-2)])
@pytest.mark.parametrize("lengths", [None, torch.tensor([5, 3])], ids=str)
def test_second_derivative_is_the_references(fast_weight_gradients, lengths, dtype, tolerance, relative_error):
    weights, tokens = inputs(2, 2, 5, 4, 6)
    if lengths is not None:
        for tensor in tokens:
            tensor[1, :, 3:] = float("nan")

    def second(function, dtype: torch.dtype) -> torch.Tensor:
        leaves = [t.to(dtype).requires_grad_() for t in (*weights, *tokens)]
        found = function(tuple(leaves[:3]), *leaves[3:], lengths)
        (first,) = torch.autograd.grad(sum(g.double().sin().sum() for g in found), leaves[3], create_graph=True)
        return torch.autograd.grad(first.double().square().sum(), leaves[0])[0]

    assert relative_error(second(fast_weight_gradients, dtype), second(reference, torch.float64)) < tolerance


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "d"), [(4, 192), (1, 768)])
def test_bfloat16_is_no_worse_than_plain_bfloat16(needs_gpu, fast_weight_gradients, heads, d, relative_error):
    weights, tokens = inputs(2, heads, 800, d, 1536)
    weights, tokens = tuple((w / 10).bfloat16() for w in weights), [t.bfloat16() for t in tokens]
    found = fast_weight_gradients(weights, *tokens)
    expected = reference(tuple(w.double() for w in weights), *(t.double() for t in tokens))
    plain = reference(tuple(w.to(needs_gpu) for w in weights), *(t.to(needs_gpu) for t in tokens))
    for mine, exact, other in zip(found, expected, plain, strict=True):
        assert relative_error(mine, exact) < 1.1 * relative_error(other, exact)
