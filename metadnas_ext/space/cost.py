"""What the candidates of a network cost.

Expected costs weigh an edge by its chance of surviving discretisation: 2 / (2 + i) at node i of a
DARTS cell, where each node keeps two of its 2 + i incoming edges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from metadnas_ext.errors import ConfigError
from metadnas_ext.placement import to_device
from metadnas_ext.space.cell_space import KEPT, Architecture, CellSpace
from metadnas_ext.space.shape import Shape

COUNTED_UNITS = ("macs", "params")
UNITS = (*COUNTED_UNITS, "ms")


@dataclass(frozen=True, eq=False)
class CostTable:
    """What each candidate costs on each edge, on one device, in one unit.

    `cells` is float64 [types, edges, candidates] of `space`, summed over all cells of a type;
    `fixed` is all that is not searched: stem, preprocessing, head. Unit: "macs", "params" or "ms"
    (measured). Raises ConfigError on a wrong unit, shape or dtype, or on negative or non-finite
    costs.
    """

    unit: str
    cells: Tensor
    fixed: float
    space: CellSpace

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ConfigError(f"unit must be one of {', '.join(UNITS)}; got {self.unit!r}")
        table, shape = self.cells, self.space.alpha_shape
        if tuple(table.shape) != shape or table.dtype != torch.float64:
            raise ConfigError(
                f"costs must be float64 {shape}, got {table.dtype} {tuple(table.shape)}"
            )
        # Of the CPU's: one that is made elsewhere comes from there, and reading it would wait.
        if table.is_cpu and not bool((torch.isfinite(table) & (table >= 0)).all()):
            raise ConfigError("costs must be finite and at least 0")
        if not (math.isfinite(self.fixed) and self.fixed >= 0):
            raise ConfigError(f"the fixed cost must be finite and at least 0, got {self.fixed}")

    @property
    def candidates(self) -> tuple[str, ...]:
        return self.space.candidates

    @cached_property
    def survival(self) -> Tensor:
        """See `CellSpace.survival`; on the device of `cells`."""
        return self.space.survival().to(self.cells.device)

    def to(self, device: torch.device | str) -> CostTable:
        """The same table on `device`, so that `expected_cost` there copies nothing."""
        return replace(self, cells=self.cells.to(device))


@dataclass(frozen=True, eq=False)
class CohortCosts:
    """Cost tables of k clients, one behind another, for the expected costs of a whole cohort.

    `cells` is float64 [k, types, edges, candidates], `fixed` [k], `survival` [edges]; each client's
    in the unit of its own table.
    """

    cells: Tensor
    fixed: Tensor
    survival: Tensor

    @classmethod
    def of(cls, tables: Sequence[CostTable]) -> CohortCosts:
        """ValueError unless the tables are of the same space."""
        if any(table.space != tables[0].space for table in tables):
            raise ValueError("the tables of a cohort must be of the same space")
        return cls(
            torch.stack([table.cells for table in tables]),
            torch.tensor([table.fixed for table in tables], dtype=torch.float64),
            tables[0].survival,
        ).to(tables[0].cells.device)

    def to(self, device: torch.device) -> CohortCosts:
        """The same on `device`."""
        return CohortCosts(*(to_device(t, device) for t in vars(self).values()))

    def rows(self, rows: slice) -> CohortCosts:
        """Those of some of the clients."""
        return replace(self, cells=self.cells[rows], fixed=self.fixed[rows])


def cost_table(shape: Shape, unit: str = "macs", affine: bool = False) -> CostTable:
    """Cost of every candidate of `shape` in multiply-accumulates or in parameters.

    "macs" counts convolutions and products for one image; pooling, batch norm, identity and bias
    are free. "params" counts weights, with those of batch norms inside cells only if `affine`; the
    stem's batch norm always has them. Raises ConfigError on another unit ("ms" is measured), or
    if a registered primitive does not fit.
    """
    if unit not in COUNTED_UNITS:
        raise ConfigError(f"costs are computed in 'macs' or 'params', got {unit!r}")
    space = shape.space
    cells = torch.zeros(space.alpha_shape, dtype=torch.float64)
    for cell in shape.cells():
        for edge in space.edges:
            for column, name in enumerate(space.candidates):
                cells[cell.type, edge.index, column] += space.candidate(name).cost(
                    cell.mixed_channels, cell.stride(edge), cell.size(edge), unit, affine
                )
    return CostTable(unit, cells, float(shape.fixed_cost(unit, affine)), space)


def expected_cost(table: CostTable | CohortCosts, *p: Tensor) -> Tensor:
    """Expected cost of the network that mixing weights stand for; differentiable.

    `p`: mixing weights [..., edges, candidates] of each cell type, leading axes (clients) alike;
    those of a cohort's table are its clients. Returns float64 [...]: MACs do not fit half precision
    and are rounded in single.
    """
    device = p[0].device
    chances = table.survival.to(device)[:, None]  # (edges, 1)
    fixed = table.fixed
    if isinstance(fixed, Tensor):
        total = fixed.to(device)
    else:
        total = torch.full((), fixed, dtype=torch.float64, device=device)
    for costs, weights in zip(table.cells.unbind(-3), p, strict=True):
        # What broadcasts would pass for the costs of other clients.
        if weights.shape[-costs.dim() :] != costs.shape:
            wanted = ", ".join(map(str, ("...", *costs.shape)))
            raise ValueError(f"mixing weights must be [{wanted}], got {list(weights.shape)}")
        expected = chances * costs.to(weights.device)
        total = total + (weights.double() * expected).sum((-2, -1))  # (...)
    return total


def genotype_cost(table: CostTable, genotype: Architecture) -> float:
    """Cost of a discrete network; rounds exactly as the solver does, so it never exceeds a budget.

    Raises ValueError if the genotype is of another space, or has a candidate not in the table.
    """
    rows = table.cells.tolist()
    costs = [rows[c.type][c.edge][c.column] for c in table.space.choices(genotype)]
    total = table.fixed
    for first in range(0, len(costs), KEPT):
        total += sum(costs[first + 1 : first + KEPT], costs[first])
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
    for costs in table.cells[..., table.space.choosable()].tolist():
        per_edge = [pick(row) for row in costs]
        for group in table.space.groups():
            kept = sorted((per_edge[edge] for edge in group), reverse=dearest)[:KEPT]
            total += sum(kept)
    return total
