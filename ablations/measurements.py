"""What the cells of a grid measured: a row for each cell, condition and seed, and medians over seeds."""

from __future__ import annotations

import functools
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable

from ablations.grid import Grid
from ablations.plan import Plan, Step
from ablations.runner import is_finished
from lact_asr.inference.results.results_file import read_results
from lact_asr.inference.robustness.arguments import file_name
from lact_asr.inference.robustness.groups import EVERYBODY
from lact_asr.inference.robustness.summary import AVERAGE, summary_rows
from lact_asr.inference.robustness.systems import Outcome

ALL = "all conditions"

Row = dict[str, object]  # of `summary_rows`, whose system is a cell's name, and the seed


def measure(grid: Grid, plan: Plan) -> list[Row]:
    """Rows of all finished cells; differences are paired with the baseline cell of the same seed.

    Besides the conditions there is ``average`` where the grid asks for one, and ``all conditions``.

    Args:
        grid, plan: of a run whose baseline is finished with every seed.
    """
    rows = []
    for seed in grid.seeds:
        steps = {cell.name: step for cell, step in plan.evaluations if cell.seed == seed and is_finished(step)}
        rows += [{**row, "seed": seed} for row in _rows_of_a_seed(grid, steps)]
    return rows


def _rows_of_a_seed(grid: Grid, steps: dict[str, Step]) -> list[Row]:
    settings = json.loads((steps[grid.baseline].output / "summary.json").read_text(encoding="utf-8"))["settings"]
    conditions = settings["conditions"]
    outcomes = {name: _outcomes(name, step, conditions) for name, step in steps.items()}
    everybody = {EVERYBODY: range(len(outcomes[grid.baseline][conditions[0]].results))}
    sums = functools.partial(summary_rows, outcomes, everybody, baseline=grid.baseline, seed=settings["seed"])
    pooled = [row for row in sums(average=conditions) if row["condition"] == AVERAGE]
    return sums(average=settings["average"]) + [{**row, "condition": ALL} for row in pooled]


def _outcomes(name: str, step: Step, conditions: Iterable[str]) -> dict[str, Outcome]:
    """What a cell's evaluation kept, utterances in one order for all cells."""
    folder = step.output / "results" / file_name(name)
    peaks = json.loads((folder / "peak_memory.json").read_text(encoding="utf-8"))
    return {
        condition: Outcome(
            sorted(read_results(folder / f"{file_name(condition)}.jsonl"), key=lambda result: result.id),
            peaks.get(condition),
        )
        for condition in conditions
    }


def over_seeds(rows: Iterable[Row]) -> list[Row]:
    """A row for each cell and condition: medians over seeds, and for intervals the lowest and highest seed.

    With one seed its row stays as it is, bootstrap intervals included.
    """
    by_cell = defaultdict(list)
    for row in rows:
        by_cell[row["system"], row["condition"]].append(row)
    return [same[0] if len(same) == 1 else _median(same) for same in by_cell.values()]


def _median(rows: list[Row]) -> Row:
    middle = {}
    for name, first in rows[0].items():
        source = name.removesuffix("_low").removesuffix("_high")
        values = [row[source] for row in rows if isinstance(row[source], (int, float))]
        if not values:
            middle[name] = first
        elif source == name:
            middle[name] = statistics.median(values)
        else:
            middle[name] = min(values) if name.endswith("_low") else max(values)
    return middle
