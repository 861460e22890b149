"""A grid's rows as Markdown tables and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from ablations.grid import Cell, Grid
from ablations.measurements import ALL, Row, over_seeds
from lact_asr.inference.results.summary import markdown_table

_ONE_SEED = "Brackets: 95 % bootstrap intervals over utterances, paired for differences."
_SEVERAL_SEEDS = "Medians of {} seeds; brackets: the lowest and highest of them."


def csv_text(grid: Grid, rows: Iterable[Row]) -> str:
    """A line for each cell, condition and seed; rates are fractions."""
    labels = {cell.name: _columns(grid, cell) for cell in grid.cells()}
    lines = [{**dict(zip(grid.axes, labels[row["system"]], strict=True)), **row} for row in rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def markdown(grid: Grid, rows: Iterable[Row]) -> str:
    """Two tables with a line a cell: error rates under each condition; kinds of errors and costs over all of them."""
    found = {(row["system"], row["condition"]): row for row in over_seeds(rows)}
    conditions = [condition for condition in dict.fromkeys(condition for _, condition in found) if condition != ALL]
    note = _ONE_SEED if len(grid.seeds) == 1 else _SEVERAL_SEEDS.format(len(grid.seeds))
    return f"""Word error rate in %, and its difference to *{grid.baseline}* in points, bold where the brackets leave out 0. {note}

{_error_rates(grid, found, conditions)}

All conditions together. Substitutions, deletions and insertions in % of the words; collapsed outputs and refused steps in % of the
utterances; WER before the step, and how far the adapted transcripts are above the better one of both (oracle), in %; seconds of compute
as a multiple of the baseline's.

{_errors_and_costs(grid, found)}
"""


def _error_rates(grid: Grid, found: dict[tuple[str, str], Row], conditions: Sequence[str]) -> str:
    header = [*grid.axes, *(title for condition in conditions for title in (condition, "difference"))]
    lines = []
    for cell in _distinct(grid):
        line = _columns(grid, cell)
        for condition in conditions:
            row = found.get((cell.name, condition))
            line += ["failed", ""] if row is None else [_with_brackets(row, "wer", ".1f"), _difference(row)]
        lines.append(line)
    return markdown_table([header, *lines])


def _errors_and_costs(grid: Grid, found: dict[tuple[str, str], Row]) -> str:
    header = [*grid.axes, "sub", "del", "ins", "collapsed", "refused", "WER before", "above oracle", "time"]
    lines = []
    for cell in _distinct(grid):
        row = found.get((cell.name, ALL))
        if row is not None:
            kinds = [f"{100 * row[kind] / row['words']:.1f}" for kind in ("substitutions", "deletions", "insertions")]
            shares = [_percent(row[name]) for name in ("collapsed", "ttt_refused", "wer_without_ttt", "oracle_gap")]
            lines.append([*_columns(grid, cell), *kinds, *shares, f"{row['real_time_factor_ratio']:.2f}"])
    return markdown_table([header, *lines])


def _distinct(grid: Grid) -> list[Cell]:
    return [cell for cell in grid.cells() if cell.seed == grid.seeds[0]]


def _columns(grid: Grid, cell: Cell) -> list[str]:
    """A cell's labels, one for each axis; of a control its name in the first column."""
    return list(cell.labels) or [f"*{cell.name}*", *[""] * (len(grid.axes) - 1)]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _with_brackets(row: Row, name: str, form: str) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{100 * value:{form}} [{100 * low:{form}}, {100 * high:{form}}]"


def _difference(row: Row) -> str:
    if row["difference"] is None:
        return "–"
    text = _with_brackets(row, "difference", "+.1f")
    return f"**{text}**" if row["difference_low"] > 0 or row["difference_high"] < 0 else text
