"""Speed-ups as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from metadnas_ext.bench.case import CHANNELS_LAST, COMPILED, NCHW
from metadnas_ext.bench.results import Results
from metadnas_ext.errors import BenchmarkError
from metadnas_ext.report.files import save_figure
from metadnas_ext.report.plots import PALETTE

BASELINES = {NCHW: "o", CHANNELS_LAST: "s", COMPILED: "D"}
"""The variants shown, with their markers."""


def plot_speedups(results: Results, path: str | Path) -> Path:
    """How many times as long as ours each baseline takes, a row a case, on a logarithmic axis.

    PNG or SVG by the suffix. Raises BenchmarkError if no case has a network baseline.
    """
    cases = [case for case in results.cases if case.ratios().keys() & BASELINES.keys()]
    if not cases:
        raise BenchmarkError("no case was compared with eager PyTorch: there is nothing to plot")
    figure = Figure(figsize=(7.4, 0.9 + 0.24 * len(cases)), layout="constrained")
    ax = figure.add_subplot()
    for (baseline, marker), colour in zip(BASELINES.items(), PALETTE, strict=False):
        points = [
            (case.ratios()[baseline], row)
            for row, case in enumerate(cases)
            if baseline in case.ratios()
        ]
        if points:
            x, y = zip(*points, strict=True)
            ax.plot(x, y, marker, color=colour, markersize=5, label=f"against {baseline}")
    ax.axvline(1, color="#222222", linewidth=1)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_yticks(range(len(cases)), [case.name for case in cases], fontsize=7.5)
    ax.invert_yaxis()
    ax.grid(color="#e4e4e4", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=7.5)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.set_title("Speed-up of metadnas_ext", fontsize=9, loc="left")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return save_figure(figure, path)
