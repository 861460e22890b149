"""How many floating-point operations each operation takes by the plain formulas, and how many our kernels do."""

from __future__ import annotations

import math

STEPS = 5


def newton_schulz_flops(count: int, m: int, n: int) -> float:
    """The plain iteration on [m, n], m ≤ n: XXᵀ and (bA + cA²)X with 2m²n each, and A² with 2m³, a step."""
    return count * STEPS * (4.0 * m * m * n + 2.0 * m**3)


def gram_form_flops(count: int, m: int, n: int) -> float:
    """What the Triton kernels do: tiles of the lower triangle where a product is symmetric, all tiles elsewhere.

    Products of m × m: A² of each step (lower); PA in full and twice for the split first step, lower in the others but the
    last; its product with P, lower, twice in the first step; and PQ in full from the second step on.
    """
    block = 64 if m <= 256 else 128
    block = max(16, min(block, 2 ** math.ceil(math.log2(m))))
    tiles = math.ceil(m / block)
    lower, full = tiles * (tiles + 1) // 2, tiles * tiles
    per_tile = 2.0 * block * block
    squares = STEPS * lower + 2 * full + 2 * lower + (STEPS - 2) * 2 * lower + (STEPS - 1) * full
    return count * per_tile * (lower * n + squares * m) + count * 2.0 * m * m * n


def gradients_flops(count: int, tokens: int, d: int, dh: int, backward: str | None = None) -> float:
    """Three products with tokens and three gradients, 2·L·d·dh each; by the formulas their derivatives are twelve more.

    Args:
        backward: None for the forward pass alone; "stored", by the formulas; "recomputed", with the forward pass again; "on chip":
            six recomputed and three for the weights, six recomputed and six for the tokens.
    """
    products = 6 + {None: 0, "stored": 12, "recomputed": 18, "on chip": 21}[backward]
    return count * products * 2.0 * tokens * d * dh


def apply_flops(count: int, tokens: int, d: int, dh: int, backward: str | None = None) -> float:
    """Three products, 2·L·d·dh each; by the formulas their derivatives are six more.

    Args:
        backward: as of `gradients_flops`; on chip three recomputed and three for the weights, three recomputed and two for the queries.
    """
    products = 3 + {None: 0, "stored": 6, "recomputed": 9, "on chip": 11}[backward]
    return count * products * 2.0 * tokens * d * dh


def muon_bytes(count: int, m: int, n: int, element_bytes: int) -> float:
    """What a Muon step must move at least: the gradient twice (Gram matrix, last product), W in and out."""
    return count * 4.0 * m * n * element_bytes


def gradients_bytes(count: int, tokens: int, d: int, dh: int, element_bytes: int) -> float:
    """What must move at least: tokens in, gradients out (shared weights are few)."""
    return count * element_bytes * (2.0 * tokens * d + 3.0 * d * dh)


def apply_bytes(count: int, tokens: int, d: int, dh: int, element_bytes: int) -> float:
    """What must move at least: queries in, outputs out, the three weights in."""
    return count * element_bytes * (2.0 * tokens * d + 3.0 * d * dh)
