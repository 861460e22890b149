"""The fit of step times: known coefficients are found again, and what it says of another device is by hand."""

from __future__ import annotations

import pytest

from benchmarks.cost_fit import fit_costs


def measured(operations: float, passes: float, steps: list[tuple[float, float]]) -> dict:
    """Steps of so many (operations, peak bytes) that take exactly what the coefficients say, on a device of 1e11 and 1e10 a second."""
    rows = []
    for flops, peak_bytes in steps:
        seconds = operations * flops / 1e11 + passes * peak_bytes / 1e10
        rows.append({"step_seconds": seconds, "peak_bytes": peak_bytes, "utilisation": flops / seconds / 1e11})
    return {"copy_bytes_per_second": 1e10, "rows": rows}


STEPS = [(1e11, 1e9), (5e11, 2e9), (2e10, 3e9), (3e12, 1e10)]


def test_known_coefficients_are_found_and_carried_over():
    fit = fit_costs([measured(1.3, 7.0, STEPS[:2]), measured(1.3, 7.0, STEPS[2:])])
    assert (fit.operations, fit.passes) == (pytest.approx(1.3), pytest.approx(7.0))
    assert fit.points == 4
    assert fit.largest_error == pytest.approx(0, abs=1e-9)
    # 1.3 · 10 s + 7 · 2 s
    assert fit.seconds(1e16, 4e12, 1e15, 2e12) == pytest.approx(27.0)


def test_errors_are_those_of_the_points():
    two = [measured(1.0, 5.0, STEPS), measured(1.5, 5.0, STEPS)]
    fit = fit_costs(two)
    assert 1.0 < fit.operations < 1.5
    assert 0 < fit.median_error <= fit.largest_error < 0.5


def test_no_part_of_a_step_takes_less_than_no_time():
    fit = fit_costs([measured(2.0, -0.5, STEPS[:2] + STEPS[3:])])
    assert fit.passes == 0
    assert fit.operations > 0


def test_too_few_points_and_points_without_a_copy_rate_give_no_fit():
    without = {**measured(1.0, 1.0, STEPS), "copy_bytes_per_second": None}
    assert fit_costs([without]) is None
    assert fit_costs([measured(1.0, 1.0, STEPS[:2]), without]) is None
