"""Geometry of a network of cells, and what its candidates cost.

`NetworkShape.cells` is the only place where channels and resolutions are computed; the network
builder and the cost tables both read it. Expected costs weigh an edge of node i by its chance of
surviving discretisation, 2 / (2 + i): each node keeps two of its 2 + i incoming edges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metadnas_ext.errors import ConfigError
from metadnas_ext.space.genotype import INPUTS, KEPT, Genotype
from metadnas_ext.space.primitives import (
    PRIMITIVES,
    Conv,
    Layer,
    check_primitive,
    factorized_reduce,
    layers,
    parameter_shapes,
    relu_conv_bn,
)

COUNTED_UNITS = ("macs", "params")
UNITS = (*COUNTED_UNITS, "ms")


@dataclass(frozen=True)
class Edge:
    """One mixed edge of a cell: `source` is a state, `target_node` the node it feeds."""

    index: int
    source: int
    target_node: int

    def stride(self, reduction: bool) -> int:
        """Stride of the candidates: 2 on the inputs of a reduction cell, else 1."""
        return 2 if reduction and self.source < INPUTS else 1


def edges(nodes: int) -> tuple[Edge, ...]:
    """All edges of a cell, numbered node by node and, within a node, by source state."""
    pairs = [(source, node) for node in range(nodes) for source in range(INPUTS + node)]
    return tuple(Edge(index, source, node) for index, (source, node) in enumerate(pairs))


@dataclass(frozen=True)
class CellShape:
    """Channels and square resolutions of one cell.

    `channels` is that of every state inside; the output has nodes * channels. `size_in` is the
    resolution of the two preprocessed inputs, `size_out` that of the nodes, in pixels. Where
    `reduction_prev`, the first input arrives at the resolution before that reduction and a
    factorized reduce brings it to `size_in`.
    """

    index: int
    reduction: bool
    reduction_prev: bool
    channels_prev_prev: int
    channels_prev: int
    channels: int
    size_in: int
    size_out: int

    def preprocess(self, affine: bool = False) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
        """Layers that bring the outputs of the cell before the last, and of the last, to C."""
        first = factorized_reduce if self.reduction_prev else relu_conv_bn
        return (
            first(self.channels_prev_prev, self.channels, affine),
            relu_conv_bn(self.channels_prev, self.channels, affine),
        )


@dataclass(frozen=True)
class NetworkShape:
    """Everything that fixes a network's geometry. Raises ConfigError on values out of range.

    Reduction cells stand at layers // 3 and 2 * layers // 3, except at index 0: one layer has none,
    two layers have one (the second), three or more have two.
    """

    channels: int = 16
    layers: int = 8
    nodes: int = 4
    classes: int = 10
    image_size: int = 32
    image_channels: int = 3
    stem_multiplier: int = 3
    candidates: tuple[str, ...] = PRIMITIVES

    def __post_init__(self) -> None:
        for name in (
            "channels",
            "layers",
            "nodes",
            "classes",
            "image_size",
            "image_channels",
            "stem_multiplier",
        ):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        _check_candidates(self.candidates)
        for candidate in self.candidates:
            check_primitive(candidate)

    def reductions(self) -> frozenset[int]:
        """Indices of the reduction cells."""
        return frozenset({self.layers // 3, 2 * self.layers // 3} - {0})

    @property
    def stem_channels(self) -> int:
        return self.stem_multiplier * self.channels

    @property
    def head_channels(self) -> int:
        """Channels that the head's linear layer reads."""
        return self.nodes * self.cells()[-1].channels

    def cells(self) -> tuple[CellShape, ...]:
        """Shape of every cell, from the stem to the head."""
        reductions = self.reductions()
        before_last = last = self.stem_channels
        channels, size = self.channels, self.image_size
        result: list[CellShape] = []
        for index in range(self.layers):
            reduction = index in reductions
            size_out = size
            if reduction:
                channels *= 2
                size_out = math.ceil(size / 2)
            result.append(
                CellShape(
                    index=index,
                    reduction=reduction,
                    reduction_prev=index - 1 in reductions,
                    channels_prev_prev=before_last,
                    channels_prev=last,
                    channels=channels,
                    size_in=size,
                    size_out=size_out,
                )
            )
            before_last, last, size = last, self.nodes * channels, size_out
        return tuple(result)


@dataclass(frozen=True, eq=False)
class CostTable:
    """What each candidate costs on each edge, on one device, in one unit.

    `normal` and `reduce` are float64 [edges, candidates], summed over all cells of that type;
    `fixed` is the rest: stem, preprocessing, head. Unit: "macs", "params" or "ms" (measured).
    Raises ConfigError on a wrong unit, shape or dtype, or on negative or non-finite costs.
    """

    unit: str
    normal: Tensor
    reduce: Tensor
    fixed: float
    candidates: tuple[str, ...]
    nodes: int

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ConfigError(f"unit must be one of {', '.join(UNITS)}; got {self.unit!r}")
        _check_candidates(self.candidates)
        shape = (len(edges(self.nodes)), len(self.candidates))
        for name in ("normal", "reduce"):
            table: Tensor = getattr(self, name)
            if tuple(table.shape) != shape or table.dtype != torch.float64:
                raise ConfigError(
                    f"{name} costs must be float64 {shape}, got {table.dtype} {tuple(table.shape)}"
                )
            if not bool((torch.isfinite(table) & (table >= 0)).all()):
                raise ConfigError(f"{name} costs must be finite and at least 0")
        if not (math.isfinite(self.fixed) and self.fixed >= 0):
            raise ConfigError(f"the fixed cost must be finite and at least 0, got {self.fixed}")

    def to(self, device: torch.device | str) -> CostTable:
        """The same table on `device`, so that `expected_cost` there copies nothing."""
        return replace(self, normal=self.normal.to(device), reduce=self.reduce.to(device))

    def choosable(self) -> list[int]:
        """Columns that a discrete architecture may choose: all but `none`."""
        return [i for i, candidate in enumerate(self.candidates) if candidate != "none"]


@dataclass(frozen=True, eq=False)
class CohortCosts:
    """Cost tables of k clients, one behind another, for the expected costs of a whole cohort.

    `normal` and `reduce` are float64 [k, edges, candidates], `fixed` [k]; each client's in the unit
    of its own table.
    """

    normal: Tensor
    reduce: Tensor
    fixed: Tensor
    nodes: int

    @classmethod
    def of(cls, tables: Sequence[CostTable]) -> CohortCosts:
        """ValueError unless the tables have the same nodes and candidates."""
        if len({(table.nodes, table.candidates) for table in tables}) != 1:
            raise ValueError("the tables of a cohort must have the same nodes and candidates")
        return cls(
            torch.stack([table.normal for table in tables]),
            torch.stack([table.reduce for table in tables]),
            torch.tensor([table.fixed for table in tables], dtype=torch.float64),
            tables[0].nodes,
        )

    def rows(self, rows: slice) -> CohortCosts:
        """Those of some of the clients."""
        return replace(
            self, normal=self.normal[rows], reduce=self.reduce[rows], fixed=self.fixed[rows]
        )


def cost_table(shape: NetworkShape, unit: str = "macs", affine: bool = False) -> CostTable:
    """Cost of every candidate of `shape` in multiply-accumulates or in parameters.

    "macs" counts convolutions and the linear layer for one image; pooling, batch norm, identity and
    bias are free. "params" counts weights, with those of batch norms inside cells only if `affine`;
    the stem's batch norm always has them. Raises ConfigError on another unit ("ms" is measured).
    """
    if unit not in COUNTED_UNITS:
        raise ConfigError(f"costs are computed in 'macs' or 'params', got {unit!r}")
    all_edges = edges(shape.nodes)
    tables = {
        reduction: torch.zeros(len(all_edges), len(shape.candidates), dtype=torch.float64)
        for reduction in (False, True)
    }
    fixed = _stem_and_head(shape, unit)
    for cell in shape.cells():
        for parts in cell.preprocess(affine):
            fixed += _layers_cost(parts, cell.size_in**2, unit)
        for edge in all_edges:
            for column, candidate in enumerate(shape.candidates):
                parts = layers(candidate, cell.channels, edge.stride(cell.reduction), affine)
                # The first layer strides, so all of a candidate runs at the node's resolution.
                cost = _layers_cost(parts, cell.size_out**2, unit)
                tables[cell.reduction][edge.index, column] += cost
    return CostTable(unit, tables[False], tables[True], float(fixed), shape.candidates, shape.nodes)


def survival(nodes: int) -> Tensor:
    """Chance of each edge to survive discretisation: 2 / (2 + i) at node i; float64 [edges]."""
    chances = [KEPT / (INPUTS + edge.target_node) for edge in edges(nodes)]
    return torch.tensor(chances, dtype=torch.float64)


def expected_cost(table: CostTable | CohortCosts, p_normal: Tensor, p_reduce: Tensor) -> Tensor:
    """Expected cost of the network that mixing weights stand for; differentiable.

    `p_normal`, `p_reduce`: [..., edges, candidates], any mixing weights, leading axes (clients)
    alike; those of a cohort's table are its clients. Returns float64 [...]: MACs do not fit half
    precision and are rounded in single.
    """
    chances = survival(table.nodes).to(p_normal.device)[:, None]  # (edges, 1)
    total = torch.as_tensor(table.fixed, dtype=torch.float64, device=p_normal.device)
    for costs, p in ((table.normal, p_normal), (table.reduce, p_reduce)):
        # What broadcasts would pass for the costs of other clients.
        if p.shape[-costs.dim() :] != costs.shape:
            wanted = ", ".join(map(str, ("...", *costs.shape)))
            raise ValueError(f"mixing weights must be [{wanted}], got {list(p.shape)}")
        total = total + (p.double() * (chances * costs.to(p.device))).sum((-2, -1))  # (...)
    return total


def genotype_cost(table: CostTable, genotype: Genotype) -> float:
    """Cost of a discrete network; rounds exactly as the solver does, so it never exceeds a budget.

    Raises ValueError if the genotype has another number of nodes or a candidate not in the table.
    """
    if genotype.nodes != table.nodes:
        raise ValueError(f"the table has {table.nodes} nodes, the genotype {genotype.nodes}")
    index = {(edge.source, edge.target_node): edge.index for edge in edges(table.nodes)}
    total = table.fixed
    for costs, pairs in ((table.normal, genotype.normal), (table.reduce, genotype.reduce)):
        rows = costs.tolist()
        for node in range(table.nodes):
            first, second = (
                rows[index[source, node]][_column(table, primitive)]
                for primitive, source in pairs[KEPT * node : KEPT * (node + 1)]
            )
            total += first + second
    return total


def cheapest_cost(table: CostTable) -> float:
    """Least cost that any genotype has: the smallest feasible budget."""
    return _extreme_cost(table, dearest=False)


def dearest_cost(table: CostTable) -> float:
    """Largest cost that any genotype has: a budget from here on does not bind."""
    return _extreme_cost(table, dearest=True)


def _extreme_cost(table: CostTable, dearest: bool) -> float:
    pick = max if dearest else min
    total = table.fixed
    for costs in (table.normal, table.reduce):
        per_edge = [pick(row) for row in costs[:, table.choosable()].tolist()]
        for first, end in _node_ranges(table.nodes):
            kept = sorted(per_edge[first:end], reverse=dearest)[:KEPT]
            total += sum(kept)
    return total


def _node_ranges(nodes: int) -> Iterator[tuple[int, int]]:
    """First edge, and the one after the last, of every node."""
    first = 0
    for node in range(nodes):
        end = first + INPUTS + node
        yield first, end
        first = end


def _column(table: CostTable, primitive: str) -> int:
    try:
        return table.candidates.index(primitive)
    except ValueError:
        known = ", ".join(table.candidates)
        raise ValueError(f"the table has no {primitive!r}, only {known}") from None


def _stem_and_head(shape: NetworkShape, unit: str) -> int:
    stem = Conv("stem", (shape.stem_channels, shape.image_channels, 3, 3))
    weights = shape.head_channels * shape.classes
    if unit == "macs":
        return stem.macs_per_pixel * shape.image_size**2 + weights
    batch_norm = 2 * shape.stem_channels
    return math.prod(stem.shape) + batch_norm + weights + shape.classes


def _layers_cost(parts: tuple[Layer, ...], pixels: int, unit: str) -> int:
    if unit == "params":
        return sum(math.prod(shape) for shape in parameter_shapes(parts).values())
    return sum(part.macs_per_pixel * pixels for part in parts if isinstance(part, Conv))


def _check_candidates(candidates: tuple[str, ...]) -> None:
    if len(set(candidates)) != len(candidates) or not set(candidates) - {"none"}:
        raise ConfigError(f"candidates must differ and not be only 'none', got {candidates}")
