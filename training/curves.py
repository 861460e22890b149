"""A picture of a run: loss, error rates and learning rates over steps, from its log."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from lact_asr.atomic_files import replacing
from lact_asr.training.run_log import LOG_NAME

CURVES_NAME = "training_curves.png"
# Panels, and which numbers of which events they show.
PANELS = {
    "loss": (("train", "ctc_loss"), ("train", "ttt_loss"), ("train", "ctc_loss_after"), ("validation", "loss")),
    "error rate": (("validation", "wer"), ("validation", "cer")),
    "learning rate": (("train", "learning_rate"), ("train", "encoder_learning_rate")),
}

logger = logging.getLogger(__name__)


def draw_curves(output_dir: Path) -> None:
    """Write ``training_curves.png`` from ``training_log.jsonl``; where that fails, a warning says why and nothing else happens."""
    try:
        _draw(output_dir)
    except Exception as error:  # no picture is worth a run
        logger.warning("no %s: %s", CURVES_NAME, error)


def read_curves(log: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(event, name) -> (step, value) in order of steps."""
    curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:  # half a line, where a disk is full
            continue
        for name, value in event.items():
            if isinstance(value, (int, float)):
                curves.setdefault((event["event"], name), []).append((event["step"], value))
    return curves


def _draw(output_dir: Path) -> None:
    from matplotlib.figure import Figure  # without pyplot: no display and no global state

    curves = read_curves(output_dir / LOG_NAME)
    figure = Figure(figsize=(8, 9), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(len(PANELS), sharex=True), PANELS.items(), strict=True):
        for event, name in lines:
            if points := curves.get((event, name)):
                style = {"marker": "o", "markersize": 4} if event == "validation" else {"linewidth": 0.8}
                axes.plot(*zip(*points, strict=True), label=f"{event} {name}", **style)
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    axes.set_xlabel("optimiser step")
    with replacing(output_dir / CURVES_NAME) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
