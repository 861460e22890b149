"""What a run leaves behind: commands, tables, a picture, and a document if one is wanted."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from ablations.grid import Grid
from ablations.measurements import measure
from ablations.plan import Plan
from ablations.plots import plot
from ablations.runner import facts, is_finished
from ablations.tables import csv_text, markdown
from lact_asr.atomic_files import write_text


def script(plan: Plan) -> str:
    """All commands of a plan, as a user types them in the repository's folder."""
    return "".join(f"# {step.title}\n{step.command}\n" for step in plan.steps)


def report(grid: Grid, plan: Plan, folder: Path, docs: Path | None, command: list[str]) -> None:
    """Write and print a grid's results, of the cells that are finished.

    Args:
        grid, plan: what was run; the baseline is finished.
        folder: gets table.md, cells.csv, plot.png and commands.sh.
        docs: a Markdown file to write as well, with the picture beside it.
        command: arguments of this run, to stand in the document.
    """
    rows = measure(grid, plan)
    table = markdown(grid, rows)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "commands.sh", script(plan))
    write_text(folder / "table.md", table)
    write_text(folder / "cells.csv", csv_text(grid, rows))
    plot(grid, rows, folder / "plot.png")
    print(f"\n{table}\nTable, CSV, plot and commands: {folder}")
    if docs is not None:
        docs.parent.mkdir(parents=True, exist_ok=True)
        plot(grid, rows, docs.with_suffix(".png"))
        write_text(docs, document(grid, plan, table, docs.with_suffix(".png").name, command))


def document(grid: Grid, plan: Plan, table: str, picture: str, command: list[str]) -> str:
    """A Markdown page: question, how it was answered and on what, tables, picture."""
    done = [facts(step) for step in plan.steps if is_finished(step)]
    commits = ", ".join(sorted({_short(fact["git_commit"]) for fact in done}))
    machines = "; ".join(sorted({f"{fact['machine']}, {fact['threads']} threads a command" for fact in done}))
    minutes = sum(fact["seconds"] for fact in done) / 60
    return f"""# {grid.name}

{grid.question}

```
{shlex.join(["python", "-m", "ablations.run_ablation", *command])}
```

{time.strftime("%-d %B %Y")}, commit {commits}, {machines}; {minutes:.0f} minutes of computing.

{table}
![{grid.name}]({picture})
"""


def _short(commit: str | None) -> str:
    """Seven digits, with the + of a changed checkout."""
    return "unknown" if commit is None else commit[:7] + "+" * commit.endswith("+")
