"""Triton's Muon step against the reference in float64, forward and backward; in the interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from lact_asr.kernels.muon_step.reference import muon_step as reference
from lact_asr.kernels.muon_step.reference import row_norms


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(rows: int, heads: int, d: int, dh: int, shared: bool) -> tuple[tuple, tuple, tuple]:
    """Weights (one for all rows of a batch, or one each), gradients and row norms of the three matrices of a layer."""
    shapes = [(dh, d), (d, dh), (dh, d)]
    weights = tuple(0.3 * normal(1 if shared else rows, heads, *shape, seed=i) for i, shape in enumerate(shapes))
    gradients = tuple(normal(rows, heads, *shape, seed=3 + i) for i, shape in enumerate(shapes))
    return weights, gradients, tuple(row_norms(0.5 * normal(1, heads, *shape, seed=6)) for shape in shapes)


@pytest.fixture
def muon_step(device):
    from lact_asr.kernels.muon_step.operation import muon_step

    def step(weights, gradients, norms, *args):
        moved = [tuple(t.to(device) for t in tensors) for tensors in (weights, gradients, norms)]
        return muon_step(*moved, *args)

    return step


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("d", "dh"), [(12, 20), (20, 12), (17, 33), (16, 16)])
def test_float32(muon_step, d, dh, shared, relative_error):
    weights, gradients, norms = layer(2, 3, d, dh, shared)
    found, momenta = muon_step(weights, gradients, norms)
    assert momenta is None
    for new, weight, gradient, norm in zip(found, weights, gradients, norms, strict=True):
        assert relative_error(new, reference(weight.double(), gradient.double(), norm.double())[0]) < 2e-4


def test_float16_with_momentum(muon_step, device, relative_error):
    weights, gradients, norms = (tuple(t.half() for t in ts) for ts in layer(2, 2, 12, 30, shared=False))
    momenta = tuple(torch.randn_like(g) for g in gradients)
    beta = torch.rand(2, 2, 1, 1).half()
    found, kept = muon_step(weights, gradients, norms, tuple(m.to(device) for m in momenta), beta.to(device))
    for i in range(3):
        exact = [t[i].double() for t in (weights, gradients, norms, momenta)]
        expected, momentum = reference(*exact, beta.double())
        assert found[i].dtype == torch.float16
        assert relative_error(found[i], expected) < 0.02
        assert relative_error(kept[i], momentum) < 2e-3  # sums in float16


def test_weights_and_momenta_in_32_bits_with_gradients_in_16(muon_step, device, relative_error):
    weights, gradients, norms = layer(2, 2, 12, 30, shared=False)
    gradients, momenta = tuple(g.half() for g in gradients), tuple(normal(*g.shape, seed=9) for g in gradients)
    beta = torch.rand(2, 2, 1, 1)
    found, kept = muon_step(weights, gradients, norms, tuple(m.to(device) for m in momenta), beta.to(device))
    for i in range(3):
        exact = [t[i].double() for t in (weights, gradients, norms, momenta)]
        expected, momentum = reference(*exact, beta.double())
        assert found[i].dtype == kept[i].dtype == torch.float32
        assert relative_error(found[i], expected) < 2e-4
        assert relative_error(kept[i], momentum) < 1e-6


GRADIENTS = {
    "zero": torch.zeros_like,
    "rank 1": lambda g: g[..., :1].sign() * g[..., :1, :].sign(),  # exact in 16 bits
    "tiny": lambda g: 1e-4 * g,
    "huge": lambda g: 1e4 * g,
}


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradients_of_any_kind(muon_step, kind, dtype, relative_error):
    weights, gradients, norms = layer(2, 1, 12, 20, shared=True)
    gradients = tuple(GRADIENTS[kind](g) for g in gradients)
    weights, gradients, norms = (tuple(t.to(dtype) for t in tensors) for tensors in (weights, gradients, norms))
    found, _ = muon_step(weights, gradients, norms)
    # Rank 1 in 16 bits: Q is some 500 on the null space, and its rounding meets the one large singular value.
    tolerance = 2e-4 if dtype == torch.float32 else 0.2 if kind == "rank 1" else 0.02
    for new, *tensors in zip(found, weights, gradients, norms, strict=True):
        assert relative_error(new, reference(*(t.double() for t in tensors))[0]) < tolerance


def test_rows_of_long_and_short_matrices(muon_step, relative_error):
    # More columns than one tile, and a last tile that is cut off: the row norm must be of the whole row.
    weights, gradients, norms = layer(1, 1, 20, 150, shared=True)
    found, _ = muon_step(weights, gradients, norms)
    for new, norm in zip(found, norms, strict=True):
        assert relative_error(row_norms(new), norm.expand(1, 1, *norm.shape[2:])) < 1e-4


@pytest.mark.parametrize("shared", [True, False])
def test_backward(muon_step, shared, relative_error):
    weights, gradients, norms = layer(2, 2, 8, 14, shared)
    outer = [normal(*g.shape, seed=20 + i) for i, g in enumerate(gradients)]

    def run(step, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [[t.to(dtype).requires_grad_() for t in ts] for ts in (weights, gradients, norms)]
        total = sum((new.cpu() * o).sum() for new, o in zip(step(*leaves), outer, strict=True))
        return torch.autograd.grad(total, [leaf for group in leaves for leaf in group])

    expected = run(lambda w, g, n: [reference(*three)[0] for three in zip(w, g, n, strict=True)], torch.float64)
    found = run(lambda w, g, n: muon_step(tuple(w), tuple(g), tuple(n))[0], torch.float32)
    for mine, exact in zip(found, expected, strict=True):
        assert relative_error(mine, exact) < 2e-3


def test_second_derivative_is_the_references(muon_step, relative_error):
    weights, gradients, norms = layer(1, 1, 4, 6, shared=True)

    def second(step, dtype: torch.dtype) -> torch.Tensor:
        leaf = gradients[0].to(dtype).requires_grad_()
        new = step(weights[0].to(dtype), leaf, norms[0].to(dtype))
        (first,) = torch.autograd.grad(new.sin().sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    found = second(lambda w, g, n: muon_step((w,), (g,), (n,))[0][0], torch.float32)
    assert relative_error(found, second(lambda w, g, n: reference(w, g, n)[0], torch.float64)) < 2e-3


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "d"), [(4, 192), (1, 768)])
def test_bfloat16_is_no_worse_than_plain_bfloat16(needs_gpu, muon_step, heads, d, relative_error):
    weights, gradients, norms = (tuple(t.bfloat16() for t in ts) for ts in layer(2, heads, d, 1536, shared=True))
    found, _ = muon_step(weights, gradients, norms)
    for new, *tensors in zip(found, weights, gradients, norms, strict=True):
        expected = reference(*(t.double() for t in tensors))[0]
        plain = reference(*(t.to(needs_gpu) for t in tensors))[0]
        assert relative_error(new, expected) < 1.1 * relative_error(plain, expected)


@pytest.mark.gpu
def test_bfloat16_backward_is_no_worse_than_plain_bfloat16(needs_gpu, muon_step, relative_error):
    weights, gradients, norms = (tuple(t.bfloat16() for t in ts) for ts in layer(2, 4, 192, 1536, shared=True))
    outer = [normal(*g.shape, seed=20 + i).bfloat16().to(needs_gpu) for i, g in enumerate(gradients)]

    def run(step, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [[t.to(needs_gpu, dtype).requires_grad_() for t in ts] for ts in (weights, gradients)]
        placed = tuple(t.to(needs_gpu, dtype) for t in norms)
        updated = step(tuple(leaves[0]), tuple(leaves[1]), placed)
        return torch.autograd.grad(updated, [*leaves[0], *leaves[1]], [o.to(dtype) for o in outer])

    def by_reference(weights, gradients, norms) -> list[torch.Tensor]:
        return [reference(*three)[0] for three in zip(weights, gradients, norms, strict=True)]

    found, plain = run(lambda *layer: muon_step(*layer)[0], torch.bfloat16), run(by_reference, torch.bfloat16)
    for mine, other, exact in zip(found, plain, run(by_reference, torch.float64), strict=True):
        assert relative_error(mine, exact) < 1.1 * relative_error(other, exact)


@pytest.mark.gpu
def test_bfloat16_gradients_with_weights_and_momenta_in_float32(needs_gpu, muon_step, relative_error):
    weights, gradients, norms = layer(2, 4, 192, 1536, shared=False)
    gradients, momenta = tuple(g.bfloat16() for g in gradients), tuple(normal(*g.shape, seed=9) for g in gradients)
    beta = torch.rand(2, 4, 1, 1)
    found, kept = muon_step(weights, gradients, norms, tuple(m.to(needs_gpu) for m in momenta), beta.to(needs_gpu))
    for i in range(3):
        exact = [t[i].double() for t in (weights, gradients, norms, momenta)]
        assert found[i].dtype == kept[i].dtype == torch.float32
        # Newton-Schulz gets the momenta in bfloat16.
        assert relative_error(found[i], reference(*exact, beta.double())[0]) < 0.02
