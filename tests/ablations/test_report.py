"""From results files to rows, tables, picture and document. The results are written as the evaluation writes them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest

from ablations.grid import Grid, read_grid
from ablations.measurements import ALL, measure, over_seeds
from ablations.plan import Plan, plan_grid
from ablations.plots import numeric_axis
from ablations.report import report
from ablations.runner import FINISHED
from ablations.tables import markdown
from lact_asr.atomic_files import write_json
from lact_asr.inference.results.results_file import ResultsWriter
from lact_asr.inference.results.utterance_result import UtteranceResult
from lact_asr.inference.robustness.arguments import file_name

GRID = """
question: Do steps help?
corpus: {data_dir: recordings}
train: {max_steps: 1}
inference: {greedy: true}
evaluate: {subset: test, conditions: [clean, mp3]}
axes:
  parameters: {inference.ttt_parameters: [norms, output]}
  steps: {inference.ttt_steps: [1, 2, 4]}
controls:
  no TTT: {inference: {use_ttt: false}}
baseline: no TTT
"""
REFERENCE = "ONE TWO THREE FOUR FIVE"
CONDITIONS = ("clean", "mp3")
PLAIN = {"good": REFERENCE, "better": "ONE TWO THREE FOUR", "worse": REFERENCE, "collapsed": REFERENCE}
ADAPTED = {"good": REFERENCE, "better": REFERENCE, "worse": "SIX SEVEN THREE FOUR FIVE SIX", "collapsed": "EEE"}


def write_cell(folder: Path, name: str, hypotheses: Mapping[str, str], backwards: bool = False) -> None:
    """Results of a cell's evaluation, as if it had just been finished."""
    results = [
        UtteranceResult.scored(
            utterance, REFERENCE, text, None if hypotheses is PLAIN else PLAIN[utterance],
            audio_seconds=2.0, compute_seconds=0.2 if hypotheses is PLAIN else 0.6,
        )
        for utterance, text in hypotheses.items()
    ]  # fmt: skip
    results_folder = folder / "evaluation" / "results" / file_name(name)
    for condition in CONDITIONS:
        with ResultsWriter(results_folder / f"{file_name(condition)}.jsonl") as writer:
            for result in reversed(results) if backwards else results:
                writer.write(result)
    write_json(results_folder / "peak_memory.json", dict.fromkeys(CONDITIONS, 10**6))
    settings = {"conditions": CONDITIONS, "average": CONDITIONS[:1], "seed": 0}
    write_json(folder / "evaluation" / "summary.json", {"settings": settings, "rows": []})
    facts = {
        "command": "python",
        "seconds": 90.0,
        "threads": 1,
        "git_commit": "0123456789abcdef+",
        "machine": "x, 2 cores",
    }
    write_json(folder / FINISHED, facts)


@pytest.fixture
def finished(tmp_path) -> tuple[Grid, Plan]:
    """A grid all of whose cells are finished, but "output, 4"; one wrote its utterances in another order."""
    (tmp_path / "steps.yaml").write_text(GRID)
    grid = read_grid(tmp_path / "steps.yaml")
    plan = plan_grid(grid, tmp_path / "out")
    for cell, step in plan.evaluations:
        if cell.name != "output, 4":
            write_cell(step.folder, cell.name, ADAPTED if cell.labels else PLAIN, backwards=cell.name == "norms, 2")
    return grid, plan


def test_rows_compare_cells_utterance_by_utterance(finished):
    rows = {(row["system"], row["condition"]): row for row in measure(*finished)}
    assert {condition for _, condition in rows} == {"clean", "mp3", "average", ALL}
    without, first, other_order = (rows[name, "clean"] for name in ("no TTT", "norms, 1", "norms, 2"))
    assert (without["wer"], without["difference"]) == (1 / 20, None)
    assert first["wer"] == (0 + 0 + 3 + 5) / 20
    assert first["difference"] == pytest.approx(7 / 20)
    assert first["difference_low"] < 7 / 20 < first["difference_high"]
    assert first["oracle_gap"] == pytest.approx(8 / 20)
    assert (first["collapsed"], first["real_time_factor_ratio"]) == (0.25, pytest.approx(3))
    assert {**other_order, "system": "norms, 1"} == first
    assert rows["norms, 1", ALL]["words"] == 2 * first["words"] == 2 * rows["norms, 1", "average"]["words"] == 40


def test_medians_over_seeds_come_with_the_lowest_and_the_highest():
    rows = [
        {"system": "a", "condition": "clean", "wer": wer, "wer_low": wer - 1, "wer_high": wer + 1, "difference": None,
         "difference_low": None, "difference_high": None, "seed": seed}
        for seed, wer in enumerate((0.5, 0.1, 0.2))
    ]  # fmt: skip
    (row,) = over_seeds(rows)
    assert (row["wer"], row["wer_low"], row["wer_high"]) == (0.2, 0.1, 0.5)
    assert row["difference"] is row["difference_low"] is None
    assert over_seeds(rows[:1]) == rows[:1]


def test_a_report_holds_every_cell(finished, tmp_path, capsys):
    grid, plan = finished
    folder, docs = tmp_path / "out" / "steps", tmp_path / "docs" / "steps.md"
    report(grid, plan, folder, docs, ["steps.yaml"])
    table = (folder / "table.md").read_text()
    assert table in capsys.readouterr().out
    lines = [[entry.strip() for entry in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    assert lines[0] == ["parameters", "steps", "clean", "difference", "mp3", "difference", "average", "difference"]
    assert lines[2][:2] == ["*no TTT*", ""]
    assert lines[2][3] == "–"
    assert lines[3][:2] == ["norms", "1"]
    assert lines[3][2].startswith("40.0 [")
    assert lines[3][3].startswith("+35.0 [")
    assert ["output", "4", "failed", "", "failed", "", "failed", ""] in lines
    # 3 wrong words, 4 lost ones and one too many in 20; one utterance of four collapsed; 3 times the seconds.
    assert ["norms", "1", "15.0", "20.0", "5.0", "25.0", "0.0", "5.0", "40.0", "3.00"] in lines
    with (folder / "cells.csv").open() as file:
        records = list(csv.DictReader(file))
    assert len(records) == 6 * 4  # cells, conditions with average and all
    assert {(record["parameters"], record["steps"]) for record in records} == {
        ("*no TTT*", ""), ("norms", "1"), ("norms", "2"), ("norms", "4"), ("output", "1"), ("output", "2"),
    }  # fmt: skip
    assert (folder / "commands.sh").read_text().count("\npython ") == len(plan.steps)
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert (docs.parent / "steps.png").stat().st_size > 10_000
    page = docs.read_text()
    assert page.startswith("# steps\n\nDo steps help?\n\n```\npython -m ablations.run_ablation steps.yaml\n```\n")
    assert "commit 0123456+, x, 2 cores, 1 threads a command; 9 minutes of computing." in page
    assert table in page
    assert "![steps](steps.png)" in page


def test_differences_that_leave_out_zero_are_bold(finished):
    grid, plan = finished
    for cell, step in plan.evaluations:
        if cell.name == "norms, 1":
            write_cell(step.folder, cell.name, dict.fromkeys(PLAIN, "ONE TWO"))
        if cell.name == "norms, 2":
            write_cell(step.folder, cell.name, dict(PLAIN))
    table = markdown(grid, measure(grid, plan))
    worse, same, mixed = (
        next(line for line in table.splitlines() if line.startswith("| norms ") and f" {steps} |" in line)
        for steps in (1, 2, 4)
    )
    assert worse.count(" **+55.0 [") == worse.count("]** ") == 3
    assert same.count(" +0.0 [+0.0, +0.0] ") == 3
    assert "**" not in same + mixed


def test_lines_run_over_the_longest_axis_of_numbers(finished):
    grid, _ = finished
    assert numeric_axis(grid) == "steps"
    root = Path(__file__).parents[2] / "ablations" / "grids"
    axes = {path.stem: numeric_axis(read_grid(path)) for path in root.glob("*.yaml")}
    assert axes["ttt_objective"] == "learning rate"
    assert axes["stride"] == "stride factor"
    assert axes["fast_weights"] is None
