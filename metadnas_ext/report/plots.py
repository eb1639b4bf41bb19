"""Pictures of a run, as PNG or SVG by the name's suffix.

Only matplotlib's object-oriented interface: no window, no global state, safe in threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from metadnas_ext.errors import RunError
from metadnas_ext.report.cells import draw_cell, plot_genotype
from metadnas_ext.report.files import save_figure
from metadnas_ext.report.names import method_name, percent, unit_name
from metadnas_ext.report.result import ClientResult
from metadnas_ext.report.run import Round, Run

__all__ = ["curve_panels", "draw_cell", "plot_clients", "plot_curves", "plot_genotype"]

# Okabe and Ito's colours, which colour-blind readers can tell apart; yellow is too pale for lines.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#222222")
_FEW_ROUNDS = 30
_FEW_CLIENTS = 30
_GRID: dict[str, Any] = {"color": "#e4e4e4", "linewidth": 0.7}


@dataclass(frozen=True)
class Panel:
    """One plot of the curves: a title, the axis' name and figures with their line styles."""

    title: str
    ylabel: str
    lines: tuple[tuple[Callable[[Round], float], str], ...]
    costs: bool = False


PANELS = (
    Panel("Validation accuracy", "accuracy (%)", ((lambda r: 100 * r.val_accuracy, "-"),)),
    Panel(
        "Loss (solid: validation, dashed: training)",
        "cross-entropy",
        ((lambda r: r.val_loss, "-"), (lambda r: r.train_loss, "--")),
    ),
    Panel(
        "Entropy of \N{GREEK SMALL LETTER ALPHA}",
        "nats per edge",
        ((lambda r: r.alpha_entropy, "-"),),
    ),
    Panel("Expected cost", "cost", ((lambda r: r.expected_cost, "-"),), costs=True),
)


def curve_panels(run: Run) -> list[Panel]:
    """The panels for which the run has at least one finite figure."""
    rounds = [entry for entries in run.rounds.values() for entry in entries]
    return [
        panel
        for panel in PANELS
        if any(math.isfinite(figure(entry)) for figure, _ in panel.lines for entry in rounds)
    ]


def plot_curves(run: Run, path: str | Path) -> Path:
    """Validation accuracy, losses, α entropy and expected cost over rounds; a line a method.

    Panels without data are left out. Raises RunError if that leaves none.
    """
    panels = curve_panels(run)
    if not panels:
        raise RunError(f"{run.path} has no round with a finite figure; there is nothing to plot")
    colours = _colours(run)
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.7 * rows + 0.4), layout="constrained")
    for index, panel in enumerate(panels):
        ax = figure.add_subplot(rows, columns, index + 1)
        _style(ax, panel.title)
        ax.set_xlabel("round", fontsize=8)
        ax.set_ylabel(panel.ylabel, fontsize=8)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if panel.costs:
            ax.yaxis.set_major_formatter(EngFormatter())
            ax.set_ylabel(f"cost ({_unit(run)})" if _unit(run) else "cost", fontsize=8)
        for method, rounds in run.rounds.items():
            x = [entry.round for entry in rounds]
            # A single round would make no visible line.
            marker = "o" if len(x) <= _FEW_ROUNDS else None
            for figure_of, dashes in panel.lines:
                y = np.array([figure_of(entry) for entry in rounds])
                y[~np.isfinite(y)] = np.nan
                style: dict[str, Any] = {"linewidth": 1.5, "marker": marker, "markersize": 2.5}
                ax.plot(x, y, dashes, color=colours[method], **style)
    handles = [Line2D([], [], color=colours[m], linewidth=2) for m in run.rounds]
    _method_legend(figure, handles, list(run.rounds))
    return save_figure(figure, path)


def plot_clients(run: Run, path: str | Path) -> Path:
    """Test accuracy of every client, sorted, one panel a method with the mean as a dashed line.

    Unseen clients are hatched. Raises RunError if no client has a finite test accuracy.
    """
    measured = {
        method: sorted(
            (r for r in results if math.isfinite(r.test_accuracy)),
            key=lambda r: (r.test_accuracy, r.client),
        )
        for method, results in run.results.items()
    }
    measured = {method: results for method, results in measured.items() if results}
    if not measured:
        raise RunError(f"{run.path} has no client with a test accuracy; there is nothing to plot")
    colours = _colours(run)
    columns = min(2, len(measured))
    rows = math.ceil(len(measured) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.4 * rows + 0.4), layout="constrained")
    for index, (method, results) in enumerate(measured.items()):
        ax = figure.add_subplot(rows, columns, index + 1)
        missing = len(run.results[method]) - len(results)
        note = f" ({missing} without a result)" if missing else ""
        _style(ax, method_name(method) + note)
        _bars(ax, results, colours[method])
    if any(not r.seen for results in measured.values() for r in results):
        grey: dict[str, Any] = {"facecolor": "#bbbbbb", "edgecolor": "white"}
        handles = [Patch(**grey), Patch(hatch="////", **grey)]
        labels = ["seen in training", "unseen"]
        figure.legend(
            handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8
        )
    return save_figure(figure, path)


def _bars(ax: Axes, results: Sequence[ClientResult], colour: str) -> None:
    accuracy = [100 * r.test_accuracy for r in results]
    bars = ax.bar(range(len(results)), accuracy, width=0.85, color=colour, linewidth=0)
    for bar, result in zip(bars, results, strict=True):
        if not result.seen:
            bar.set(hatch="////", edgecolor="white", alpha=0.75)
    mean = sum(accuracy) / len(accuracy)
    ax.axhline(mean, color="#222222", linewidth=1, linestyle="--")
    # Above the axes' end, where no bar can reach.
    ax.text(
        0.01,
        104,
        f"mean {percent(mean / 100, 1)} %",
        fontsize=7.5,
        va="center",
        transform=ax.get_yaxis_transform(),
    )
    ax.set_xlim(-0.8, len(results) - 0.2)
    ax.set_ylim(0, 109)
    ax.set_yticks(range(0, 101, 20))
    ax.set_ylabel("test accuracy (%)", fontsize=8)
    if len(results) <= _FEW_CLIENTS:
        ax.set_xticks(range(len(results)), [str(r.client) for r in results], fontsize=6.5)
        ax.set_xlabel("client", fontsize=8)
    else:
        ax.set_xticks([])
        ax.set_xlabel(f"{len(results)} clients, sorted", fontsize=8)


def _style(ax: Axes, title: str) -> None:
    # A method's own name may hold a dollar sign, which is not meant as mathematics.
    ax.set_title(title, fontsize=9, loc="left", parse_math=False)
    ax.tick_params(labelsize=7.5)
    ax.grid(axis="y", **_GRID)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _method_legend(figure: Figure, handles: list[Line2D], methods: list[str]) -> None:
    legend = figure.legend(
        handles,
        [method_name(method) for method in methods],
        loc="outside lower center",
        ncols=min(4, len(methods)),
        frameon=False,
        fontsize=8,
    )
    for entry in legend.get_texts():
        entry.set_parse_math(False)


def _colours(run: Run) -> dict[str, str]:
    """A colour for each method, the same in every picture of the run."""
    return {method: PALETTE[i % len(PALETTE)] for i, method in enumerate(run.methods)}


def _unit(run: Run) -> str:
    """The unit of all costs for people, or nothing if clients differ or none has ended."""
    units = {result.unit for results in run.results.values() for result in results}
    return unit_name(units.pop()) if len(units) == 1 else ""
