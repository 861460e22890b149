"""Run a benchmark of the checkout that this package is imported from: ``lact-asr bench``.

Benchmarks compare with other projects and need a machine's quiet, so they are in the repository and not in the package.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
from pathlib import Path

from lact_asr.command_line import program_name
from lact_asr.errors import InputError, exit_on_input_error

CHECKOUT = Path(__file__).resolve().parents[1]


@exit_on_input_error
def main(argv: list[str] | None = None) -> int:
    """Run ``python -m benchmarks.NAME`` with the remaining flags; returns its exit code."""
    benchmarks = find_benchmarks(CHECKOUT)
    parser = argparse.ArgumentParser(
        prog=program_name("python -m lact_asr.run_benchmark"),
        description=f"Run a benchmark of this checkout, {CHECKOUT}; NAME --help explains its flags.",
        epilog="\n".join(f"  {name:<{max(map(len, benchmarks))}}  {summary}" for name, summary in benchmarks.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=benchmarks, metavar="NAME", help="one of those below")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="its flags")
    arguments = parser.parse_args(argv)
    paths = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", f"benchmarks.{arguments.name}", *arguments.flags]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}).returncode


def find_benchmarks(checkout: Path) -> dict[str, str]:
    """The benchmarks that can be run and the first sentence of each.

    Raises:
        InputError: there are none: the package is installed without its repository.
    """
    found = {}
    for path in sorted((checkout / "benchmarks").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if '__name__ == "__main__"' in text:
            found[path.stem] = " ".join((ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].split())
    if not found:
        raise InputError(
            f"There are no benchmarks beside {Path(__file__).parent}: they are in the repository, not in the installed "
            "package. Clone it and install it with pip install -e ."
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
