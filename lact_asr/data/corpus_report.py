"""The report of `lact_asr.data.check_corpus`: a table of durations, a picture of them, and everything as JSON."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from lact_asr.atomic_files import replacing, write_json
from lact_asr.data.corpus_checks import CheckedSubset
from lact_asr.errors import InputError
from lact_asr.text import normalise_text, unspellable_characters

QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
_BIN_SECONDS = 0.5


def duration_table(checked: list[CheckedSubset]) -> str:
    """A Markdown table: utterances, hours, and durations in seconds, for each subset and, of several, for all."""
    rows = [(subset.name, subset.durations_seconds) for subset in checked]
    if len(rows) > 1:
        rows.append(("all", [seconds for _, durations in rows for seconds in durations]))
    columns = ["utterances", "hours", "mean", "min", *(f"{100 * quantile:g} %" for quantile in QUANTILES), "max"]
    lines = [f"| seconds | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, durations in rows:
        values = _duration_values(durations)
        cells = [f"{len(durations):,}", *(f"{value:.{2 if key == 'hours' else 1}f}" for key, value in values.items())]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_report(checked: list[CheckedSubset], folder: Path) -> list[Path]:
    """Write ``report.json`` and, where matplotlib is installed, ``durations.png``; returns what was written.

    Raises:
        InputError: they cannot be written.
    """
    characters = sum((subset.characters for subset in checked), Counter())
    content = {
        "subsets": {
            subset.name: {
                "listed": len(subset.ids),
                "readable": len(subset.durations_seconds),
                **_duration_values(subset.durations_seconds),
            }
            for subset in checked
        },
        "characters": {
            character: {"count": count, "becomes": "cannot be spelt" if unspellable_characters(character) else normalise_text(character)}
            for character, count in characters.most_common()
        },
        "problems": [
            {"subset": subset.name, "name": problem.name, "kind": problem.kind, "sentence": problem.sentence,
             "severity": "error" if problem.is_error else "warning"}
            for subset in checked
            for problem in subset.problems
        ],
    }  # fmt: skip
    report, picture = folder / "report.json", folder / "durations.png"
    try:
        write_json(report, content)
        return [report, picture] if _plot_durations(checked, picture) else [report]
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be written: {error.strerror}.") from None


def _duration_values(durations: list[float]) -> dict[str, float]:
    """Hours, and mean, least, quantiles and most of durations in seconds; all 0 without any."""
    seconds = np.asarray(durations or [0.0])
    quantiles = {
        f"{100 * q:g} %": float(value) for q, value in zip(QUANTILES, np.quantile(seconds, QUANTILES), strict=True)
    }
    return {
        "hours": float(seconds.sum() / 3600),
        "mean": float(seconds.mean()),
        "min": float(seconds.min()),
        **quantiles,
        "max": float(seconds.max()),
    }


def _plot_durations(checked: list[CheckedSubset], path: Path) -> bool:
    """A histogram for each subset; false where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return False
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    longest = max((seconds for subset in checked for seconds in subset.durations_seconds), default=1.0)
    bins = np.arange(0, longest + _BIN_SECONDS, _BIN_SECONDS)
    for subset in checked:
        axes.hist(
            subset.durations_seconds, bins, histtype="step", label=f"{subset.name} ({len(subset.durations_seconds):,})"
        )
    axes.set(xlabel="seconds", ylabel=f"utterances in {_BIN_SECONDS:g} s", xlim=(0, None))
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return True
