"""A picture of a search for the language model's weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lact_asr.atomic_files import replacing
from lact_asr.inference.decoding.weight_tuning import TuningRow


def plot_word_error_rates(rows: Sequence[TuningRow], path: Path) -> None:
    """Write a heat map of WER in per cent as PNG: word scores across, weights upwards, the lowest rate framed.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written; nothing is left behind.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    weights = sorted({row.lm_weight for row in rows})
    scores = sorted({row.word_score for row in rows})
    rates = {(row.lm_weight, row.word_score): 100 * row.errors.rate for row in rows}
    figure = Figure(figsize=(2 + 0.8 * len(scores), 1.6 + 0.5 * len(weights)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow([[rates[weight, score] for score in scores] for weight in weights], "viridis_r", origin="lower")
    best = min(rows, key=lambda row: row.errors.errors)
    for y, weight in enumerate(weights):
        for x, score in enumerate(scores):
            light = image.norm(rates[weight, score]) > 0.5
            axes.text(x, y, f"{rates[weight, score]:.1f}", ha="center", va="center", color="w" if light else "k")
    corner = (scores.index(best.word_score) - 0.5, weights.index(best.lm_weight) - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="red", linewidth=2.5))
    axes.set_xticks(range(len(scores)), [f"{score:g}" for score in scores])
    axes.set_yticks(range(len(weights)), [f"{weight:g}" for weight in weights])
    axes.set(xlabel="word score", ylabel="language model's weight", title="WER in %")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
