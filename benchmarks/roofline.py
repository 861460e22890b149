"""The roofline: what each operation reaches against the device's measured matmul rate and memory bandwidth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.kernels import Measurement

MARKERS = {"triton": "o", "pytorch": "s", "torch.compile": "^"}


def plot_roofline(path: Path, facts: dict, measurements: list[Measurement]) -> None:
    """Draw FLOP/s done over FLOPs a byte for the forward passes of all implementations; a picture of the results file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    peak, bandwidth = facts["matmul_flops_per_second"], facts["copy_bytes_per_second"]
    figure, axes = pyplot.subplots(figsize=(9, 6))
    intensities = [10 ** (exponent / 20) for exponent in range(0, 81)]
    roof = [min(peak, bandwidth * intensity) / 1e12 for intensity in intensities]
    axes.plot(
        intensities, roof, color="black", label=f"measured: {peak / 1e12:.0f} TFLOP/s, {bandwidth / 1e12:.1f} TB/s"
    )
    colours = {name: f"C{i}" for i, name in enumerate(sorted({m.operation for m in measurements}))}
    labelled = set()
    for m in measurements:
        if m.direction != "forward" or m.implementation not in MARKERS:
            continue
        label = f"{m.operation}, {m.implementation}"
        axes.scatter(
            1e3 * m.done_gigaflop / m.minimum_megabytes, m.teraflops_done_per_second, s=14 + 2 * m.utterances,
            marker=MARKERS[m.implementation], color=colours[m.operation], alpha=0.7,
            label=None if label in labelled else label,
        )  # fmt: skip
        labelled.add(label)
    axes.set(
        xscale="log", yscale="log", xlabel="FLOPs done per byte that must move", ylabel="TFLOP/s done (forward)",
        title=f"{facts['device']}, {facts['dtype']}, {facts['date']}, commit {facts['commit']}; larger marks: more utterances",
    )  # fmt: skip
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3, which="both")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
