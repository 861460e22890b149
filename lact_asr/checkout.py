"""Which state of the source code and which packages are running, for what runs and benchmarks write down."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path


def git_commit() -> str | None:
    """The checkout's commit, with a + where files differ from it; None outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=folder, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def installed_version(package: str) -> str | None:
    """Of a distribution, by the name that pip knows; None where it is not installed, as this one in a checkout on PYTHONPATH."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
