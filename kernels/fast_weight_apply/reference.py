"""The fast network's forward pass in plain PyTorch: the twin that every fused version is tested against."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu


def fast_weight_apply(weights: tuple[Tensor, Tensor, Tensor], queries: Tensor) -> Tensor:
    """f_W(q) = W1 (SiLU(W0 q) ⊙ (W2 q)), a SwiGLU network without biases (LaCT, arXiv 2505.23884).

    Args:
        weights: W0 [..., dh, d], W1 [..., d, dh], W2 [..., dh, d].
        queries: q [..., L, d].

    Returns:
        [..., L, d].
    """
    w0, w1, w2 = weights
    return (silu(queries @ w0.mT) * (queries @ w2.mT)) @ w1.mT
