"""Pictures of a study: curves over rounds and bars of clients.

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
from metadnas_ext.report.files import save_figure
from metadnas_ext.report.names import method_name, percent, unit_name
from metadnas_ext.report.result import ClientResult
from metadnas_ext.report.run import Round
from metadnas_ext.report.study import Study

# Okabe and Ito's colours, which colour-blind readers can tell apart; yellow is too pale for lines.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#222222")
_FEW_ROUNDS = 30
_FEW_CLIENTS = 30
_GRID: dict[str, Any] = {"color": "#e4e4e4", "linewidth": 0.7}


@dataclass(frozen=True)
class Panel:
    """One plot of the curves: a title, the axis' name and figures with their line styles.

    sparse: measured in some rounds only, which are joined over the others.
    """

    title: str
    ylabel: str
    lines: tuple[tuple[Callable[[Round], float], str], ...]
    costs: bool = False
    sparse: bool = False


PANELS = (
    Panel("Validation accuracy", "accuracy (%)", ((lambda r: 100 * r.val_accuracy, "-"),)),
    Panel(
        "Loss (solid: validation, dashed: training)",
        "cross-entropy",
        ((lambda r: r.val_loss, "-"), (lambda r: r.train_loss, "--")),
    ),
    Panel(
        "Entropy of \N{GREEK SMALL LETTER ALPHA} (solid: server, dashed: clients)",
        "nats per edge",
        ((lambda r: r.alpha_entropy, "-"), (lambda r: r.client_entropy, "--")),
    ),
    Panel("Expected cost", "cost", ((lambda r: r.expected_cost, "-"),), costs=True),
    Panel(
        "Skip connections (solid: server, dashed: clients)",
        "in an architecture",
        ((lambda r: r.skips, "-"), (lambda r: r.client_skips, "--")),
    ),
    Panel(
        "Largest eigenvalue of the Hessian in \N{GREEK SMALL LETTER ALPHA}",
        "eigenvalue",
        ((lambda r: r.hessian_eigenvalue, "-"),),
        sparse=True,
    ),
)


def curve_panels(study: Study) -> list[Panel]:
    """The panels for which the study has at least one finite figure."""
    rounds = [r for run in study.runs for entries in run.rounds.values() for r in entries]
    return [
        panel
        for panel in PANELS
        if any(math.isfinite(figure(entry)) for figure, _ in panel.lines for entry in rounds)
    ]


def plot_curves(study: Study, path: str | Path) -> Path:
    """All panels with data as one picture, PNG or SVG by the suffix. RunError if there are none."""
    return save_figure(curves_figure(study, curve_panels(study)), path)


def curves_figure(study: Study, panels: Sequence[Panel]) -> Figure:
    """Some panels over rounds: a line a method, over several seeds their mean before theirs, pale.

    Raises RunError without panels.
    """
    if not panels:
        raise RunError(f"{study.name} has no round with a finite figure; there is nothing to plot")
    colours, trained = _colours(study), _trained(study)
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.7 * rows + 0.4), layout="constrained")
    for index, panel in enumerate(panels):
        ax = figure.add_subplot(rows, columns, index + 1)
        _style(ax, panel.title)
        ax.set_xlabel("round", fontsize=8)
        ax.set_ylabel(panel.ylabel, fontsize=8)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.ticklabel_format(axis="y", useOffset=False)
        if panel.costs:
            ax.yaxis.set_major_formatter(EngFormatter())
            ax.set_ylabel(f"cost ({_unit(study)})" if _unit(study) else "cost", fontsize=8)
        for method in trained:
            histories = [run.rounds[method] for run in study.runs if method in run.rounds]
            for figure_of, dashes in panel.lines:
                if panel.sparse:
                    histories = [[r for r in h if math.isfinite(figure_of(r))] for h in histories]
                _curve(ax, histories, figure_of, dashes, colours[method])
    handles = [Line2D([], [], color=colours[m], linewidth=2) for m in trained]
    _method_legend(figure, handles, trained)
    return figure


def measured_methods(study: Study) -> list[str]:
    """Methods with at least one finite test accuracy."""
    return [method for method in study.methods if _measured(study, method)]


def plot_clients(study: Study, path: str | Path) -> Path:
    """All methods' clients as one picture, PNG or SVG by the suffix. RunError if there are none."""
    return save_figure(clients_figure(study, measured_methods(study)), path)


def clients_figure(study: Study, methods: Sequence[str]) -> Figure:
    """Test accuracy of every client, sorted, one panel a method with the mean as a dashed line.

    Unseen clients are hatched. Raises RunError without methods.
    """
    if not methods:
        raise RunError(f"{study.name} has no client with a test accuracy; there is nothing to plot")
    measured = {method: _measured(study, method) for method in methods}
    colours = _colours(study)
    columns = min(2, len(measured))
    rows = math.ceil(len(measured) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.4 * rows + 0.4), layout="constrained")
    for index, (method, results) in enumerate(measured.items()):
        ax = figure.add_subplot(rows, columns, index + 1)
        missing = len(study.clients(method)) - len(results)
        note = f" ({missing} without a result)" if missing else ""
        _style(ax, method_name(method) + note)
        _bars(ax, results, colours[method])
    if any(not r.seen for results in measured.values() for _, r in results):
        grey: dict[str, Any] = {"facecolor": "#bbbbbb", "edgecolor": "white"}
        handles = [Patch(**grey), Patch(hatch="////", **grey)]
        labels = ["seen in training", "unseen"]
        figure.legend(
            handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8
        )
    return figure


def _curve(
    ax: Axes,
    histories: Sequence[Sequence[Round]],
    figure_of: Callable[[Round], float],
    dashes: str,
    colour: str,
) -> None:
    """One figure of a method over its rounds, a history a seed."""
    values: dict[int, list[float]] = {}
    for rounds in histories:
        x = [entry.round for entry in rounds]
        y = np.array([figure_of(entry) for entry in rounds])
        y[~np.isfinite(y)] = np.nan
        for index, value in zip(x, y.tolist(), strict=True):
            values.setdefault(index, []).append(value)
        if len(histories) > 1:
            ax.plot(x, y, dashes, color=colour, linewidth=0.8, alpha=0.35)
    # Where a seed has stopped earlier, a mean of the others would jump.
    mean = {i: float(np.mean(v)) for i, v in sorted(values.items()) if len(v) == len(histories)}
    # A single round would make no visible line.
    marker = "o" if len(mean) <= _FEW_ROUNDS else None
    style: dict[str, Any] = {"linewidth": 1.5, "marker": marker, "markersize": 2.5}
    ax.plot(list(mean), list(mean.values()), dashes, color=colour, **style)


def _bars(ax: Axes, results: Sequence[tuple[int, ClientResult]], colour: str) -> None:
    accuracy = [100 * r.test_accuracy for _, r in results]
    bars = ax.bar(range(len(results)), accuracy, width=0.85, color=colour, linewidth=0)
    for bar, (_, result) in zip(bars, results, strict=True):
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
    several = len({seed for seed, _ in results}) > 1
    if len(results) <= (_FEW_CLIENTS // 2 if several else _FEW_CLIENTS):
        names = [f"{r.client}/{seed}" if several else str(r.client) for seed, r in results]
        ax.set_xticks(range(len(results)), names, fontsize=6.5)
        ax.set_xlabel("client/seed" if several else "client", fontsize=8)
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
    names = [method_name(method) for method in methods]
    # Inches of an entry in this size of letters, with its line.
    entry_width = 0.6 + 0.065 * max(map(len, names), default=0)
    fitting = int(figure.get_figwidth() / entry_width)
    legend = figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=max(1, min(4, len(methods), fitting)),
        frameon=False,
        fontsize=8,
    )
    for entry in legend.get_texts():
        entry.set_parse_math(False)


def _trained(study: Study) -> list[str]:
    """Methods with rounds of their own."""
    return [method for method in study.methods if any(method in r.rounds for r in study.runs)]


def _measured(study: Study, method: str) -> list[tuple[int, ClientResult]]:
    """(seed, result) of the clients with a finite test accuracy, worst first."""
    found = [(s, r) for s, r in study.clients(method) if math.isfinite(r.test_accuracy)]
    return sorted(found, key=lambda pair: (pair[1].test_accuracy, pair[1].client, pair[0]))


def _colours(study: Study) -> dict[str, str]:
    """A colour for each method, the same in every picture of the study."""
    return {method: PALETTE[i % len(PALETTE)] for i, method in enumerate(study.methods)}


def _unit(study: Study) -> str:
    """The unit of all costs for people, or nothing if clients differ or none has ended."""
    units = {result.unit for method in study.methods for _, result in study.clients(method)}
    return unit_name(units.pop()) if len(units) == 1 else ""
