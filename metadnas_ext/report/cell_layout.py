"""Where the parts of a cell graph go so that nothing lies on top of anything else.

Lengths are in inches. Every operation is a label glued to the left of the node it feeds, so labels
cannot collide with each other by choice of curve; what is left to choose is the height of each node
and how far each curve bulges. Both are searched, deterministically, for few collisions and
crossings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

INPUTS = 2
NODE_RADIUS = 0.15
TERMINAL = (0.5, 0.28)
"""Width and height of the boxes of the two inputs and the output."""
LABEL_HEIGHT = 0.2
LABEL_PITCH = 0.26
STUB = 0.2
"""From a label to its node: room for the arrow head."""
GAP = 0.62
"""Between columns: room for the curves."""
LEVEL = 0.3
CLEARANCE = 0.06
BULGES = np.array([0.0, 0.4, -0.4, 0.8, -0.8, 1.2, -1.2, 1.6, -1.6])
SAMPLES_PER_INCH = 12


@dataclass(frozen=True)
class Box:
    """An axis-parallel box by its centre and size."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Curve:
    """A cubic Bézier curve whose x grows evenly: control points at thirds of the way."""

    start: tuple[float, float]
    end: tuple[float, float]
    bulge: float

    @property
    def points(self) -> list[tuple[float, float]]:
        """The four control points."""
        (x0, y0), (x1, y1) = self.start, self.end
        third = (x1 - x0) / 3
        return [
            self.start,
            (x0 + third, y0 + self.bulge),
            (x1 - third, y1 + self.bulge),
            self.end,
        ]


@dataclass(frozen=True)
class Layout:
    """A finished drawing plan."""

    terminals: tuple[Box, ...]
    """The inputs, then the output."""
    targets: tuple[int, ...]
    """The node that each edge feeds."""
    nodes: tuple[Box, ...]
    labels: tuple[Box, ...]
    """One an edge, in the order of the edges."""
    curves: tuple[Curve, ...]
    """Source to label, in the order of the edges."""
    exits: tuple[Curve, ...]
    """Node to output, one for each concatenated node."""
    left: float
    right: float
    bottom: float
    top: float


@lru_cache(maxsize=64)
def lay_out(
    sources: tuple[int, ...],
    targets: tuple[int, ...],
    concat: tuple[int, ...],
    label_width: float,
    inputs: int = INPUTS,
) -> Layout:
    """Plan the graph in which edge e feeds node `targets[e]` from `sources[e]`.

    Indices count the inputs first, so that node n of a cell with two is n + 2. Edges come from
    lower indices only.
    """
    plan = _Planner(sources, targets, concat, label_width, inputs)
    count = len(plan.columns)
    reach = max(3, count - 1)
    levels: Array = LEVEL * np.arange(-reach, reach + 1, dtype=np.float64)
    # Spread each column evenly; its mirror image is another start, because descent ends locally.
    spread = np.zeros(count)
    for column in set(plan.columns):
        members = [node for node in range(count) if plan.columns[node] == column]
        spread[members] = 2 * LEVEL * (len(members) / 2 - 0.5 - np.arange(len(members)))
    tilt = LEVEL * np.where(np.arange(count) % 2, -1.0, 1.0)
    starts = [spread, -spread, spread + tilt, -spread - tilt]
    best = min((plan.descend(start, levels) for start in starts), key=lambda found: found[0])
    return plan.finish(best[1])


class _Planner:
    """The fixed x of everything, and what a choice of heights costs."""

    def __init__(
        self,
        sources: Sequence[int],
        targets: Sequence[int],
        concat: Sequence[int],
        label_width: float,
        inputs: int,
    ) -> None:
        self.inputs = inputs
        self.sources, self.targets, self.concat = sources, targets, concat
        self.label_width = label_width
        count = max(targets, default=inputs - 1) - inputs + 1
        self.columns: list[int] = []
        for node in range(count):
            inner = [s - inputs for s, t in self.edges if t == node + inputs and s >= inputs]
            self.columns.append(1 + max((self.columns[i] for i in inner), default=0))
        step = GAP + label_width + STUB + 2 * NODE_RADIUS
        first = TERMINAL[0] / 2 + step - NODE_RADIUS
        self.x = np.array([*[0.0] * inputs, *(first + step * (c - 1) for c in self.columns)])
        last = max(self.columns, default=0)
        self.output = Box(first + step * (last - 1) + GAP + 0.45, 0.0, *TERMINAL)
        self.scores: dict[tuple[float, ...], float] = {}

    @property
    def edges(self) -> list[tuple[int, int]]:
        """(source, target) of every edge."""
        return list(zip(self.sources, self.targets, strict=True))

    def descend(self, start: Array, levels: Array) -> tuple[float, Array]:
        """Move one node at a time to its best height until no move helps."""
        heights = start.copy()
        best = self.score(heights)
        improved = True
        while improved:
            improved = False
            for node in range(len(heights)):
                for level in levels:
                    trial = heights.copy()
                    trial[node] = level
                    cost = self.score(trial)
                    if cost < best - 1e-9:
                        heights, best, improved = trial, cost, True
        return best, heights

    def score(self, heights: Array) -> float:
        """Cost of the drawing with these heights; remembered, since descents meet."""
        key = tuple(np.round(heights, 6).tolist())
        if key not in self.scores:
            self.scores[key] = self._route(heights)[0]
        return self.scores[key]

    def finish(self, heights: Array) -> Layout:
        """The drawing with these heights."""
        _, boxes, curves = self._route(heights)
        count = len(heights)
        edges = len(self.sources)
        terminals = (*boxes[: self.inputs], self.output)
        nodes = boxes[self.inputs : self.inputs + count]
        ends = [y for c in curves for y in (_heights(c, np.linspace(0, 1, 25))).tolist()]
        ends += [b.y + side * b.height / 2 for b in boxes for side in (-1, 1)]
        return Layout(
            terminals=terminals,
            targets=tuple(target - self.inputs for target in self.targets),
            nodes=tuple(nodes),
            labels=tuple(boxes[self.inputs + count + 1 :]),
            curves=tuple(curves[:edges]),
            exits=tuple(curves[edges:]),
            left=-TERMINAL[0] / 2,
            right=self.output.x + TERMINAL[0] / 2,
            bottom=min(ends),
            top=max(ends),
        )

    def _boxes(self, heights: Array) -> list[Box]:
        """Inputs, nodes, output, labels, in this order."""
        inputs = self.inputs
        y = np.array([*(2 * LEVEL * (inputs - 1 - 2 * np.arange(inputs))), *heights])
        boxes = [Box(0.0, float(y[i]), *TERMINAL) for i in range(inputs)]
        size = 2 * NODE_RADIUS
        boxes += [Box(float(self.x[i]), float(y[i]), size, size) for i in range(inputs, len(y))]
        boxes.append(self.output)
        for edge, target in enumerate(self.targets):
            # The label whose source lies higher goes on top: its curves then do not cross.
            stack = [e for e, t in enumerate(self.targets) if t == target]
            stack.sort(key=lambda e: (-y[self.sources[e]], self.sources[e], e))
            rank = stack.index(edge) - (len(stack) - 1) / 2
            x = self.x[target] - NODE_RADIUS - STUB - self.label_width / 2
            height = float(y[target] - rank * LABEL_PITCH)
            boxes.append(Box(float(x), height, self.label_width, LABEL_HEIGHT))
        return boxes

    def _route(self, heights: Array) -> tuple[float, list[Box], list[Curve]]:
        boxes = self._boxes(heights)
        count = len(heights)
        first_label = self.inputs + count + 1
        straight: list[Curve] = []
        own: list[tuple[int, int]] = []  # the boxes a curve may touch: where it starts and ends
        for edge, source in enumerate(self.sources):
            straight.append(_join(boxes[source], boxes[first_label + edge]))
            own.append((source, first_label + edge))
        for node in self.concat:
            straight.append(_join(boxes[node], self.output))
            own.append((node, self.inputs + count))
        grid = np.arange(0.0, self.output.x, 1 / SAMPLES_PER_INCH)
        paths = np.stack([_sample(curve, grid) for curve in straight])  # (curves, bulges, grid)
        hits = _hits(paths, grid, boxes, own)  # (curves, bulges)
        cost = 6 * hits + np.abs(BULGES) * 1.5
        chosen = cost.argmin(axis=1)
        rows = np.arange(len(straight))
        lines = paths[rows, chosen]
        length = np.array([abs(c.end[1] - c.start[1]) for c in straight])
        total = float(cost[rows, chosen].sum() + (length**2).sum())
        total += 2.0 * _crossings(lines, len(self.sources)) + 40.0 * _overlaps(boxes)
        total += 0.5 * float(np.abs(heights).sum())
        curves = [
            Curve(c.start, c.end, float(BULGES[b])) for c, b in zip(straight, chosen, strict=True)
        ]
        return total, boxes, curves


def _join(source: Box, target: Box) -> Curve:
    start = (source.x + source.width / 2, source.y)
    return Curve(start, (target.x - target.width / 2, target.y), 0.0)


def _heights(curve: Curve, t: Array) -> Array:
    """y of the curve at parameters t."""
    y0, y1, y2, y3 = (y for _, y in curve.points)
    s = 1 - t
    return y0 * s**3 + 3 * y1 * s**2 * t + 3 * y2 * s * t**2 + y3 * t**3


def _sample(curve: Curve, grid: Array) -> Array:
    """(bulges, grid): y above each x of the grid, NaN outside the curve."""
    x0, x1 = curve.start[0], curve.end[0]
    t = (grid - x0) / (x1 - x0)  # x grows evenly with t
    inside = (t >= 0) & (t <= 1)
    base = _heights(curve, t)
    lift = 3 * t * (1 - t)  # what a bulge of 1 adds
    return np.where(inside, base + BULGES[:, None] * lift, np.nan)


def _hits(paths: Array, grid: Array, boxes: list[Box], own: list[tuple[int, int]]) -> Array:
    """(curves, bulges): samples of a curve that lie in a box which is not its own."""
    hits = np.zeros(paths.shape[:2])
    for index, box in enumerate(boxes):
        beside = np.abs(grid - box.x) < box.width / 2 + CLEARANCE
        near = np.abs(paths[:, :, beside] - box.y) < box.height / 2 + CLEARANCE
        foreign = np.array([index not in pair for pair in own])
        hits += near.sum(axis=2) * foreign[:, None]
    return hits


def _crossings(lines: Array, labelled: int) -> float:
    """Pairs of curves that cross; the thin grey exits count half."""
    gap = np.nan_to_num(lines[:, None] - lines)  # (curves, curves, grid)
    # Curves are continuous: being above somewhere and below elsewhere means crossing.
    crossed = np.triu((gap.max(axis=2) > 1e-6) & (gap.min(axis=2) < -1e-6))
    exits = crossed[:, labelled:].sum()  # a pair is (lower, higher) and exits come last
    return float(crossed.sum() - 0.5 * exits)


def _overlaps(boxes: list[Box]) -> int:
    """Pairs of boxes that touch, labels of one node excepted by their pitch."""
    x, y, w, h = np.array([(b.x, b.y, b.width, b.height) for b in boxes]).T
    wide = np.abs(x[:, None] - x) < (w[:, None] + w) / 2
    high = np.abs(y[:, None] - y) < (h[:, None] + h) / 2 + CLEARANCE / 2
    return int((np.triu(wide & high, 1)).sum())
