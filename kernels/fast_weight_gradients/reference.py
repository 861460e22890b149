"""Gradients of the fast weights' inner loss in plain PyTorch: the twin that every fused version is tested against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu


def inner_objective(weights: tuple[Tensor, Tensor, Tensor], keys: Tensor, values: Tensor) -> Tensor:
    """⟨f_W(k), v⟩ of each token, [..., L]; the inner loss is its negative, weighted by learning rates and summed.

    Args:
        weights: W0 [..., dh, d], W1 [..., d, dh], W2 [..., dh, d].
        keys: k [..., L, d].
        values: v [..., L, d].
    """
    w0, w1, w2 = weights
    return (((silu(keys @ w0.mT) * (keys @ w2.mT)) @ w1.mT) * values).sum(-1)


def fast_weight_gradients(
    weights: tuple[Tensor, Tensor, Tensor], keys: Tensor, values: Tensor, learning_rates: Tensor,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Ascent directions of Σ_t η_t ⟨f_W(k_t), v_t⟩ for f_W(x) = W1 (SiLU(W0 x) ⊙ (W2 x)), written out by hand.

    With g = W0 k, u = W2 k, s = σ(g), d = W1ᵀ v:
    ∇W1 = Σ η1 v (SiLU(g) ⊙ u)ᵀ, ∇W2 = Σ η2 (d ⊙ SiLU(g)) kᵀ, ∇W0 = Σ η0 (d ⊙ u ⊙ s (1 + g (1 − s))) kᵀ
    (LaCT, arXiv 2505.23884, appendix).

    Args:
        weights: W0 [..., dh, d], W1 [..., d, dh], W2 [..., dh, d].
        keys: k [..., L, d].
        values: v [..., L, d].
        learning_rates: η [..., L, 3], for W0, W1 and W2 in this order.
        lengths: [B] integers, real tokens of each row, where the tokens' first dimension is B: what later ones hold, NaN too,
            changes nothing. None: all are real; padding then needs η = 0 and finite k and v, as 0 · NaN is NaN.

    Returns:
        (∇W0, ∇W1, ∇W2), shaped as the weights with the batch dimensions of the tokens.
    """
    if lengths is not None:
        keys, values, learning_rates = (without_padding(t, lengths) for t in (keys, values, learning_rates))
    w0, w1, w2 = weights
    rate0, rate1, rate2 = learning_rates[..., None].unbind(-2)  # each [..., L, 1]
    gate, up, down = keys @ w0.mT, keys @ w2.mT, values @ w1  # each [..., L, dh]
    sigmoid = torch.sigmoid(gate)
    activated = gate * sigmoid
    slope = torch.addcmul(sigmoid + activated, sigmoid, activated, value=-1)  # s (1 + g (1 − s)), in fewer passes
    gradient0 = sum_of_outer_products(down * up * slope, rate0 * keys)
    gradient1 = sum_of_outer_products(rate1 * values, activated * up)
    gradient2 = sum_of_outer_products(down * activated, rate2 * keys)
    return gradient0, gradient1, gradient2


def sum_of_outer_products(left: Tensor, right: Tensor) -> Tensor:
    """Σ_t l_t r_tᵀ: [..., L, m], [..., L, n] -> [..., m, n]."""
    return _SumOfOuterProducts.apply(left, right)


class _SumOfOuterProducts(torch.autograd.Function):
    """Lᵀ R with derivatives that lie in memory as L and R do.

    Autograd's own derivative by L is transposed, and everything element-wise that follows takes up to three times as long.
    """

    @staticmethod
    def forward(ctx, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return left.mT @ right

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):  # the forward pass's precision, not the caller's
            return right @ gradient.mT, left @ gradient


def without_padding(tokens: Tensor, lengths: Tensor) -> Tensor:
    """[B, ..., L, n] with zeros from each row's length on."""
    padding = torch.arange(tokens.shape[-2], device=tokens.device) >= lengths.to(tokens.device)[:, None]
    padding = padding.view(tokens.shape[0], *[1] * (tokens.ndim - 3), tokens.shape[-2], 1)
    return tokens.masked_fill(padding, 0.0)
