"""The kernels that keep everything of width dh on chip, against autograd through the reference in float64.

The operator takes them for 16 bits only; in float32 they are called directly, to be compared more sharply.
"""

from __future__ import annotations

import pytest
import torch

from lact_asr.kernels.fast_weight_gradients.reference import fast_weight_gradients as reference
from lact_asr.kernels.fast_weight_gradients.reference import without_padding

SHAPES = [
    (37, 24, 40),
    (1, 12, 20),
    (70, 70, 65),
    (33, 192, 48),
]  # tokens, d, dh: one, two and three chunks of features


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(count: int, num_tokens: int, d: int, dh: int, weight_count: int) -> tuple[tuple, list]:
    """Weights, and [keys, values, learning rates]."""
    shapes = [(dh, d), (d, dh), (dh, d)]
    weights = tuple(normal(weight_count, *shape, seed=i) / d**0.5 for i, shape in enumerate(shapes))
    tokens = [normal(count, num_tokens, d, seed=3), normal(count, num_tokens, d, seed=4)]
    return weights, [*tokens, torch.rand(count, num_tokens, 3, generator=torch.Generator().manual_seed(5))]


def repeated(weights: tuple, count: int) -> tuple:
    return tuple(weight.repeat(count // weight.shape[0], 1, 1) for weight in weights)


@pytest.mark.parametrize(("num_tokens", "d", "dh"), SHAPES)
def test_forward_in_float32(device, num_tokens, d, dh, relative_error):
    from lact_asr.kernels.fast_weight_gradients.on_chip import fast_weight_gradients

    weights, tokens = inputs(4, num_tokens, d, dh, weight_count=2)
    lengths = torch.tensor([num_tokens, num_tokens // 2])
    placed = [t.to(device) for t in (*weights, *tokens)]
    found = fast_weight_gradients(tuple(placed[:3]), *placed[3:], lengths.to(device))
    tokens = [without_padding(t.double(), lengths.repeat_interleave(2)) for t in tokens]
    for mine, exact in zip(found, reference(repeated([w.double() for w in weights], 4), *tokens), strict=True):
        assert relative_error(mine, exact) < 5e-6


@pytest.mark.parametrize(("num_tokens", "d", "dh"), SHAPES)
def test_derivatives_in_float32(device, num_tokens, d, dh, relative_error):
    from lact_asr.kernels.fast_weight_gradients import on_chip_backward

    weights, tokens = inputs(4, num_tokens, d, dh, weight_count=2)
    lengths = torch.tensor([num_tokens, num_tokens // 2])
    upstream = tuple(normal(4, *weight.shape[1:], seed=6 + i) for i, weight in enumerate(weights))
    leaves = [t.double().requires_grad_() for t in (*repeated(weights, 4), *tokens)]
    masked = [without_padding(t, lengths.repeat_interleave(2)) for t in leaves[3:]]
    exact = torch.autograd.grad(reference(tuple(leaves[:3]), *masked), leaves, [u.double() for u in upstream])

    for tensor in tokens:
        tensor[2:, num_tokens // 2 :] = float("nan")  # padding is not read
    placed = [t.to(device) for t in (*weights, *tokens, lengths, *upstream)]
    arguments = (tuple(placed[:3]), *placed[3:7], tuple(placed[7:]))
    found = *on_chip_backward.weights_derivatives(*arguments), *on_chip_backward.tokens_derivatives(*arguments)
    for mine, expected in zip(found, exact, strict=True):
        assert relative_error(mine, expected) < 1e-5
    if num_tokens > 1:
        assert all(tokens[2:, num_tokens // 2 :].abs().max() == 0 for tokens in found[3:])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("wanted", [range(6), range(3), [3], [5]], ids=str)
def test_the_operators_backward_in_16_bits(device, shared, wanted, relative_error):
    from lact_asr.kernels.fast_weight_gradients.operation import fast_weight_gradients

    weights, tokens = inputs(4, 21, 40, 24, weight_count=4)
    weights = [w.view(2, 2, *w.shape[1:])[: 1 if shared else 2].half() for w in weights]
    tokens = [t.view(2, 2, *t.shape[1:]).half() for t in tokens]
    lengths = torch.tensor([21, 9])

    def run(function, dtype: torch.dtype, where: str) -> list[torch.Tensor]:
        leaves = [t.to(where, dtype).requires_grad_(i in wanted) for i, t in enumerate((*weights, *tokens))]
        found = function(tuple(leaves[:3]), *leaves[3:], lengths.to(where))
        loss = (found[0].float() * 0.01).sin().sum() + (found[2].float() * 0.01).sin().sum()  # no use of the second
        return torch.autograd.grad(loss, [leaf for leaf in leaves if leaf.requires_grad])

    exact = run(lambda *inputs: [g.double() for g in reference(*inputs)], torch.float64, "cpu")
    for mine, expected in zip(run(fast_weight_gradients, torch.float16, device), exact, strict=True):
        assert mine.dtype == torch.float16
        assert relative_error(mine, expected) < 5e-3


@pytest.mark.gpu
def test_bfloat16_backward_is_no_worse_than_plain_bfloat16(needs_gpu, relative_error):
    from lact_asr.kernels.fast_weight_gradients.operation import fast_weight_gradients

    weights, tokens = inputs(8, 800, 192, 1536, weight_count=4)
    upstream = [normal(8, *weight.shape[1:], seed=6 + i) for i, weight in enumerate(weights)]

    def run(function, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [t.to(needs_gpu, dtype).requires_grad_() for t in (*repeated(weights, 8), *tokens)]
        given = [t.bfloat16().to(needs_gpu, dtype) for t in upstream]
        return torch.autograd.grad(function(tuple(leaves[:3]), *leaves[3:]), leaves, given)

    weights, tokens = tuple(w.bfloat16() for w in weights), [t.bfloat16() for t in tokens]
    found, plain = run(fast_weight_gradients, torch.bfloat16), run(reference, torch.bfloat16)
    for mine, other, exact in zip(found, plain, run(reference, torch.float64), strict=True):
        assert relative_error(mine, exact) < 1.1 * relative_error(other, exact)
