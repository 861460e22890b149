"""Run an experiment grid: train what it needs, evaluate every cell, write tables and a plot.

  python -m ablations.run_ablation ablations/grids/ttt_objective.yaml --quick
  python -m ablations.run_ablation ablations/grids/ttt_objective.yaml --processes 2 --docs docs/ablations/ttt_objective.md

Every step is a command that users run themselves. They, their logs and results stay in OUTPUT_DIR: after Ctrl-C, a crash or
a changed grid, the same call runs only what is missing. The table of a grid goes to OUTPUT_DIR/NAME/ (table.md, cells.csv,
plot.png, commands.sh). docs/ablations.md says how a grid is written and what the shipped ones ask.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lact_asr.errors import InputError, exit_on_input_error


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Plan, run, report; returns the exit code: 1 where a step failed, 130 where it was stopped."""
    arguments = _parse(argv)
    # Imported after parsing: --help, and mistakes in a grid, are answered at once.
    from ablations.grid import read_grid

    grid = read_grid(arguments.grid, arguments.quick)
    from ablations.plan import plan_grid
    from ablations.report import report, script
    from ablations.runner import run_steps

    plan = plan_grid(grid, arguments.output_dir)
    if arguments.dry_run:
        print(script(plan), end="")
        return 0
    with _alone_in(arguments.output_dir):
        try:
            failures = run_steps(plan.steps, arguments.processes)
        except KeyboardInterrupt:
            print("Stopped; the same command goes on from here.", file=sys.stderr)
            return 130
        for step, message in failures.items():
            print(f"\n{step.title} failed: {message}\n$ {step.command}", file=sys.stderr)
        if any(step in failures for cell, step in plan.evaluations if cell.name == grid.baseline):
            print(f"\nThere is no table without its baseline, {grid.baseline!r}.", file=sys.stderr)
        else:
            report(grid, plan, arguments.output_dir / grid.name, arguments.docs, sys.argv[1:] if argv is None else argv)
    return 1 if failures else 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ablations.run_ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("grid", type=Path, metavar="GRID.yaml", help="shipped ones are in ablations/grids/")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/ablations"),
        help="corpora and trainings in it are shared by all grids (default: %(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="the grid's short form: minutes on two cores, to try it")
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="steps that run at a time, with an equal share of the cores each; times are fair with 1 (default: %(default)s)",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands and stop")
    parser.add_argument(
        "--docs", type=Path, default=None, metavar="FILE.md", help="write the tables and plot there too"
    )
    arguments = parser.parse_args(argv)
    if arguments.processes < 1:
        raise InputError(f"--processes must be 1 or more, not {arguments.processes}.")
    return arguments


def _alone_in(output_dir: Path):
    """A lock that a second run on the same folder does not get.

    Raises:
        InputError: another run has it, or the folder cannot be made.
    """
    from filelock import FileLock, Timeout

    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        return FileLock(output_dir / ".lock").acquire(timeout=0)
    except Timeout:
        raise InputError(f"another run uses {output_dir}: wait for it, or choose another --output_dir.") from None
    except OSError as error:
        raise InputError(f"{output_dir} cannot be written to: {error.strerror}.") from None


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for those who type this file's path
    sys.exit(main())
