"""What a run leaves to read: summary.csv and summary.json for programs, report.html and a Markdown table for people."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jinja2
import torch

from lact_asr.atomic_files import write_json, write_text
from lact_asr.checkout import git_commit, installed_version
from lact_asr.errors import InputError
from lact_asr.inference.results.summary import markdown_table
from lact_asr.inference.robustness.arguments import SUMMARY_NAME
from lact_asr.inference.robustness.bootstrap import RESAMPLES
from lact_asr.inference.robustness.plot import plot_error_rates

REPORTED_PACKAGES = (
    "lact-asr",
    "torch",
    "transformers",
    "numpy",
    "soundfile",
    "soxr",
    "audiomentations",
    "pyroomacoustics",
)

Table = list[list[str]]


def describe_run(arguments: argparse.Namespace, argv: Sequence[str], corpus: str) -> dict:
    """What somebody needs to repeat the run and to read its figures."""
    return {
        "command": shlex.join(["python", "-m", "lact_asr.inference.evaluate_robustness", *argv]),
        "corpus": corpus,
        "systems": {system.name: system.flags for system in arguments.system},
        "baseline": arguments.baseline,
        "conditions": [condition.name for condition in arguments.conditions],
        "average": [condition.name for condition in arguments.average],
        "seed": arguments.seed,
        "resamples": RESAMPLES,
        "resampled": arguments.resample,
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"),
    }


def _versions() -> dict[str, str]:
    versions = {name: installed_version(name) for name in REPORTED_PACKAGES}
    return {name: version for name, version in versions.items() if version}  # some conditions alone need the others


def write_summary(rows: Sequence[dict], settings: Mapping, output_dir: Path) -> None:
    """Write summary.csv, summary.json and report.html.

    Raises:
        InputError: one cannot be written.
    """
    try:
        write_json(output_dir / "summary.json", {"settings": settings, "rows": rows})
        write_text(output_dir / SUMMARY_NAME, _csv(rows))
        write_text(output_dir / "report.html", _html(rows, settings))
    except OSError as error:
        raise InputError(f"{error.filename} cannot be written: {error.strerror}.") from None


def _csv(rows: Sequence[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows({**row, "ttt_refusals": json.dumps(row["ttt_refusals"])} for row in rows)
    return text.getvalue()


def markdown(rows: Sequence[dict]) -> str:
    """All rows as Markdown, a table for each group."""
    tables = []
    for group in _distinct(rows, "group"):
        of_group = [row for row in rows if row["group"] == group]
        header, *cells = _details(of_group)
        table = [["", *header], *([row["condition"], *line] for row, line in zip(of_group, cells, strict=True))]
        tables.append(f"{group}: {of_group[0]['utterances']:,} utterances\n\n{markdown_table(table)}")
    return "\n\n".join(tables)


def _html(rows: Sequence[dict], settings: Mapping) -> str:
    groups = []
    for name in _distinct(rows, "group"):
        of_group = [row for row in rows if row["group"] == name]
        conditions = {
            condition: _details([row for row in of_group if row["condition"] == condition])
            for condition in _distinct(of_group, "condition")
        }
        groups.append(
            {
                "name": name,
                "headline": _headline(of_group),
                "plot": plot_error_rates(of_group),
                "conditions": conditions,
            }
        )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html.jinja").render(groups=groups, **settings)


def _distinct(rows: Sequence[dict], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


# ---- tables -----------------------------------------------------------------------------------------------------------


def _headline(rows: Sequence[dict]) -> Table:
    """A row for each condition, a column for each system."""
    systems = _distinct(rows, "system")
    found = {(row["condition"], row["system"]): row for row in rows}
    return [
        ["WER %", *systems],
        *(
            [condition, *(_rate_with_star(found[condition, system]) for system in systems)]
            for condition in _distinct(rows, "condition")
        ),
    ]


def _details(rows: Sequence[dict]) -> Table:
    """A row for each of the records, with all that is known of it."""
    return [list(_COLUMNS), *([cell(row) for cell in _COLUMNS.values()] for row in rows)]


def _rate_with_star(row: Mapping) -> str:
    return _with_interval(row, "wer", ".1f") + _star(row)


def _star(row: Mapping) -> str:
    """Where the interval of the difference leaves out 0."""
    return (
        " *" if row["difference_low"] is not None and not row["difference_low"] <= 0 <= row["difference_high"] else ""
    )


def _with_interval(row: Mapping, key: str, form: str) -> str:
    if row[key] is None:
        return "–"
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    interval = "" if low is None else f" ({100 * low:{form}} to {100 * high:{form}})"
    return f"{100 * row[key]:{form}}{interval}"


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.1f}"


def _refusals(row: Mapping) -> str:
    reasons = "; ".join(f"{_percent(share)} {reason}" for reason, share in row["ttt_refusals"].items())
    return _percent(row["ttt_refused"]) + (f" ({reasons})" if reasons else "")


def _megabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:,.0f}"


_COLUMNS: dict[str, Callable[[Mapping], str]] = {
    "system": lambda row: row["system"],
    "words": lambda row: f"{row['words']:,}",
    "WER %": lambda row: _with_interval(row, "wer", ".1f"),
    "difference": lambda row: _with_interval(row, "difference", "+.1f") + _star(row),
    "relative %": lambda row: _with_interval(row, "relative_difference", "+.1f"),
    "CER %": lambda row: _percent(row["cer"]),
    "sub.": lambda row: f"{row['substitutions']:,}",
    "del.": lambda row: f"{row['deletions']:,}",
    "ins.": lambda row: f"{row['insertions']:,}",
    "collapsed %": lambda row: _percent(row["collapsed"]),
    "failed": lambda row: f"{row['failed']:,}",
    "WER % before TTT": lambda row: _percent(row["wer_without_ttt"]),
    "gap to oracle": lambda row: _percent(row["oracle_gap"]),
    "TTT refused %": _refusals,
    "s per s of audio": lambda row: f"{row['real_time_factor']:.3f}",
    "× baseline": lambda row: f"{row['real_time_factor_ratio']:.2f}",
    "peak MB": lambda row: _megabytes(row["peak_memory_bytes"]),
}
