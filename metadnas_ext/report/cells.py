"""Cells of an architecture as left-to-right graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, PathPatch
from matplotlib.path import Path as Outline

from metadnas_ext.errors import RunError
from metadnas_ext.report import cell_layout
from metadnas_ext.report.cell_layout import INPUTS, Box, Layout, lay_out
from metadnas_ext.report.files import save_figure
from metadnas_ext.space.nasbench201 import EDGES, operations_of

FAMILIES = {
    "separable convolution": "#0072b2",
    "dilated convolution": "#009e73",
    "convolution": "#cc79a7",
    "pooling": "#d55e00",
    "skip connection": "#4d4d4d",
    "none": "#8f8f8f",
    "other": "#8a6d00",
}
"""Colour of each family of operations; colours that colour-blind readers can tell apart."""

_BY_PREFIX = (
    ("sep_conv", "sep", "separable convolution"),
    ("dil_conv", "dil", "dilated convolution"),
    ("nor_conv", "conv", "convolution"),
    ("max_pool", "max", "pooling"),
    ("avg_pool", "avg", "pooling"),
    ("skip", "skip", "skip connection"),
    ("none", "none", "none"),
)
TIMES = "\N{MULTIPLICATION SIGN}"
_POOLINGS_AND_SKIPS = ("max", "avg", "skip", "none")
_LONGEST_LABEL = 16
_FONT = 8.0
_MARGIN = 0.12
_LEGEND_HEIGHT = 0.32
_TITLE_HEIGHT = 0.28
_INK = "#222222"

Cell = Sequence[Sequence[Any]]
"""Edges of a cell as [operation, source], two for each node, inputs counted first."""


def operation(name: str) -> tuple[str, str]:
    """Short label and family of an operation: 'sep_conv_3x3' → ('sep 3×3', 'separable …')."""
    for prefix, short, family in _BY_PREFIX:
        if name.startswith(prefix):
            size = name.rpartition("_")[2]
            sized = short not in _POOLINGS_AND_SKIPS and "x" in size
            return (f"{short} {size.replace('x', TIMES)}" if sized else short), family
    label = name.replace("_", " ")
    return (label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"), "other"


def draw_cell(cell: Cell, target: str | Path | Axes, concat: Sequence[int] | None = None) -> None:
    """Draw one cell, into Axes or as a .png or .svg file.

    `cell` lists [operation, source] with two entries a node; `concat` the nodes that make the
    output (all of them if not given), counted after the two inputs. Raises RunError if this is no
    cell.
    """
    layout, names = _plan(cell, concat)
    if isinstance(target, Axes):
        _draw(target, layout, names)
        return
    width, height = _extent(layout)
    figure = Figure(figsize=(width, height + _LEGEND_HEIGHT))
    total = height + _LEGEND_HEIGHT
    _draw(figure.add_axes((0, _LEGEND_HEIGHT / total, 1, height / total)), layout, names)
    _legend(figure, names)
    save_figure(figure, target)


def plot_genotype(genotype: Mapping[str, Any], path: str | Path, title: str | None = None) -> Path:
    """`genotype_figure` as a .png or .svg file."""
    return save_figure(genotype_figure(genotype, title), path)


def genotype_figure(genotype: Mapping[str, Any], title: str | None = None) -> Figure:
    """The cells of a genotype: DARTS' normal above reduction, NAS-Bench-201's one.

    Raises RunError if the genotype lacks a cell or a cell cannot be read.
    """
    plans = _plans(genotype)
    width = max(_extent(layout)[0] for _, layout, _ in plans)
    head = _TITLE_HEIGHT if title else 0.0
    total = head + _LEGEND_HEIGHT
    total += sum(_TITLE_HEIGHT + _extent(layout)[1] for _, layout, _ in plans)
    figure = Figure(figsize=(width, total))
    top = total - head
    if title:
        y = (total - _TITLE_HEIGHT / 2 - 0.02) / total
        figure.text(
            0.5,
            y,
            title,
            ha="center",
            va="center",
            fontsize=_FONT + 2,
            color=_INK,
            parse_math=False,
        )
    for heading, layout, names in plans:
        y = (top - _TITLE_HEIGHT / 2) / total
        style: dict[str, Any] = {"fontsize": _FONT + 1, "fontweight": "bold", "color": _INK}
        figure.text(_MARGIN / width, y, heading, ha="left", va="center", **style)
        own_width, height = _extent(layout)
        top -= _TITLE_HEIGHT + height
        left = (width - own_width) / 2
        box = (left / width, top / total, own_width / width, height / total)
        _draw(figure.add_axes(box), layout, names)
    _legend(figure, [name for _, _, names in plans for name in names])
    return figure


def _plans(genotype: Mapping[str, Any]) -> list[tuple[str, Layout, list[str]]]:
    """Heading, layout and operations of each cell."""
    if "arch" in genotype:
        return [("Cell", *_bench_plan(genotype["arch"]))]
    plans = []
    for key, heading in (("normal", "Normal cell"), ("reduce", "Reduction cell")):
        if key not in genotype:
            raise RunError(f"the genotype has no {key!r} cell")
        plans.append((heading, *_plan(genotype[key], genotype.get(f"{key}_concat"))))
    return plans


def _bench_plan(text: Any) -> tuple[Layout, list[str]]:
    """As `_plan`, of a NAS-Bench-201 architecture: one input, the last node the output."""
    try:
        names = list(operations_of(str(text)))
    except ValueError as error:
        raise RunError(str(error)) from None
    sources = tuple(edge.source for edge in EDGES)
    targets = tuple(edge.target_node + 1 for edge in EDGES)
    return lay_out(sources, targets, (targets[-1],), _label_width(names), inputs=1), names


def _label_width(names: Sequence[str]) -> float:
    return 0.13 + 0.062 * max(len(operation(name)[0]) for name in names)


def _plan(cell: Cell, concat: Sequence[int] | None) -> tuple[Layout, list[str]]:
    """Check the cell and lay it out; also the operations, in the order of the edges."""
    if not isinstance(cell, list | tuple):
        raise RunError(f"a cell is a list of edges, got {cell!r}")
    if not cell or len(cell) % 2:
        raise RunError(f"a cell has two edges a node, got {len(cell)} edges")
    names, sources = [], []
    for index, edge in enumerate(cell):
        if not _is_edge(edge):
            raise RunError(f"edge {index} must be [operation, source], got {edge!r}")
        if not 0 <= edge[1] < index // 2 + INPUTS:
            raise RunError(f"edge {index} cannot start at {edge[1]}: its node comes no later")
        names.append(edge[0])
        sources.append(edge[1])
    targets = [index // 2 + INPUTS for index in range(len(cell))]
    last = len(cell) // 2 + INPUTS
    outputs = list(range(INPUTS, last)) if concat is None else list(concat)
    if not outputs or any(not INPUTS <= node < last for node in outputs):
        raise RunError(f"the output joins nodes {INPUTS} to {last - 1}, got {outputs}")
    return lay_out(tuple(sources), tuple(targets), tuple(outputs), _label_width(names)), names


def _is_edge(edge: Any) -> bool:
    return (
        isinstance(edge, list | tuple)
        and len(edge) == 2
        and isinstance(edge[0], str)
        and isinstance(edge[1], int)
    )


def _extent(layout: Layout) -> tuple[float, float]:
    """Width and height of the drawing in inches, margins included."""
    width = layout.right - layout.left + 2 * _MARGIN
    return width, layout.top - layout.bottom + 2 * _MARGIN


def _draw(ax: Axes, layout: Layout, names: list[str]) -> None:
    width, height = _extent(layout)
    ax.set_xlim(layout.left - _MARGIN, layout.left - _MARGIN + width)
    ax.set_ylim(layout.bottom - _MARGIN, layout.bottom - _MARGIN + height)
    ax.set_aspect("equal")
    ax.set_axis_off()
    frame = ax.get_window_extent()
    dpi = ax.get_figure(root=True).dpi  # type: ignore[union-attr]
    # Text has a size of its own: shrink or grow it with the drawing.
    scale = min(frame.width / width, frame.height / height) / dpi
    for curve in layout.exits:
        _line(ax, curve.points, "#c4c4c4", 1.0 * scale)
    for curve, name in zip(layout.curves, names, strict=True):
        _line(ax, curve.points, FAMILIES[operation(name)[1]], 1.4 * scale)
    for edge, (label, name) in enumerate(zip(layout.labels, names, strict=True)):
        _stub(ax, label, layout.nodes[layout.targets[edge]], FAMILIES[operation(name)[1]], scale)
    for label, name in zip(layout.labels, names, strict=True):
        short, family = operation(name)
        _box(ax, label, short, FAMILIES[family], "white", scale)
    for index, node in enumerate(layout.nodes):
        ax.add_patch(
            Circle(
                (node.x, node.y),
                cell_layout.NODE_RADIUS,
                facecolor="white",
                edgecolor=_INK,
                linewidth=scale,
                zorder=4,
            )
        )
        _text(ax, node, str(index), _INK, scale)
    captions = ("k-2", "k-1", "k")[-len(layout.terminals) :]
    for terminal, name in zip(layout.terminals, captions, strict=True):
        _box(ax, terminal, f"$c_{{{name}}}$", "#e9e9e9", _INK, scale)


def _line(ax: Axes, points: list[tuple[float, float]], colour: str, width: float) -> None:
    outline = Outline(points, [Outline.MOVETO] + [Outline.CURVE4] * 3)
    style: dict[str, Any] = {"facecolor": "none", "capstyle": "butt", "zorder": 1}
    ax.add_patch(PathPatch(outline, edgecolor=colour, linewidth=width, **style))


def _stub(ax: Axes, label: Box, node: Box, colour: str, scale: float) -> None:
    """The arrow from a label to its node."""
    start = (label.x + label.width / 2, label.y)
    dx, dy = node.x - start[0], node.y - start[1]
    reach = 1 - cell_layout.NODE_RADIUS / (dx * dx + dy * dy) ** 0.5
    end = (start[0] + reach * dx, start[1] + reach * dy)
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=7 * scale,
            color=colour,
            linewidth=1.2 * scale,
            shrinkA=0,
            shrinkB=0,
            zorder=2,
        )
    )


def _box(ax: Axes, box: Box, text: str, fill: str, ink: str, scale: float) -> None:
    pad = box.height / 2 if ink == "white" else 0.05
    corner = (box.x - box.width / 2, box.y - box.height / 2)
    ax.add_patch(
        FancyBboxPatch(
            corner,
            box.width,
            box.height,
            boxstyle=f"round,pad=0,rounding_size={pad}",
            facecolor=fill,
            edgecolor="none" if ink == "white" else ink,
            linewidth=0.8 * scale,
            zorder=3,
        )
    )
    _text(ax, box, text, ink, scale)


def _text(ax: Axes, box: Box, text: str, colour: str, scale: float) -> None:
    style: dict[str, Any] = {"ha": "center", "va": "center_baseline", "zorder": 5}
    ax.text(box.x, box.y, text, color=colour, fontsize=_FONT * scale, **style)


def _legend(figure: Figure, names: Sequence[str]) -> None:
    """One line for each family that occurs, along the bottom."""
    present = {operation(name)[1] for name in names}
    families = [family for family in FAMILIES if family in present]
    handles = [Line2D([], [], color=FAMILIES[family], linewidth=3) for family in families]
    figure.legend(
        handles,
        families,
        loc="lower center",
        ncols=len(families),
        frameon=False,
        fontsize=_FONT - 0.5,
        handlelength=1.2,
        columnspacing=1.2,
        borderaxespad=0.3,
    )
