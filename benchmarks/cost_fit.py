"""What a training step costs, fitted to measured steps: operations at the device's matmul rate, and passes over its memory at the copy rate.

seconds = a · operations / matmul rate + b · peak bytes / copy rate. Both rates are measured in the same run as the step, so that a and b
belong to the models and not to a device, and can be carried over to another one. a is above 1 where products are too small for the
matmul rate; b counts how often what is kept at the peak is read or written by what is no product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class CostFit:
    """The two coefficients, and how far the fitted steps are from the measured ones.

    Attributes:
        operations: a.
        passes: b.
        points: how many measured steps.
        median_error, largest_error: |fitted / measured - 1|.
    """

    operations: float
    passes: float
    points: int
    median_error: float
    largest_error: float

    def seconds(self, flops: float, peak_bytes: float, matmul_flops_per_second: float, copy_bytes_per_second: float) -> float:  # fmt: skip
        """Of a step."""
        return self.operations * flops / matmul_flops_per_second + self.passes * peak_bytes / copy_bytes_per_second


def fit_costs(measured: Sequence[dict]) -> CostFit | None:
    """The least relative squared error over all rows of results of `benchmarks.training`; None below three points.

    Args:
        measured: contents of training.json that have ``copy_bytes_per_second``; others are left out.
    """
    points = [point for content in measured if content.get("copy_bytes_per_second") for point in _points(content)]
    if len(points) < 3:
        return None
    parts = np.array(points)  # seconds of operations and of passes, in shares of the measured step
    coefficients = _least_squares_above_zero(parts)
    errors = np.abs(parts @ coefficients - 1)
    return CostFit(*coefficients.tolist(), len(points), float(np.median(errors)), float(errors.max()))


def _points(content: dict) -> list[tuple[float, float]]:
    copy_rate = content["copy_bytes_per_second"]
    return [(row["utilisation"], row["peak_bytes"] / copy_rate / row["step_seconds"]) for row in content["rows"]]


def _least_squares_above_zero(parts: np.ndarray) -> np.ndarray:
    """The coefficients of parts that sum to 1; of two, one is 0 where both would need opposite signs."""
    best, *_ = np.linalg.lstsq(parts, np.ones(len(parts)), rcond=None)
    if (best >= 0).all():
        return best
    alone = parts.sum(0) / np.square(parts).sum(0)  # each by itself
    errors = np.square(parts * alone - 1).sum(0)
    return np.where(np.arange(len(alone)) == errors.argmin(), alone, 0.0)
