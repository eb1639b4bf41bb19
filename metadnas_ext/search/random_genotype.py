"""Architectures drawn uniformly from all that fit a budget."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from metadnas_ext.errors import BudgetError
from metadnas_ext.space import Architecture, Choice, CostTable, cheapest_cost, genotype_cost

Array = NDArray[np.float64]

CELLS = 1024
"""Of the grid that costs are rounded down to: more cells, fewer draws rejected."""


class Group(NamedTuple):
    """What a group of edges of one cell type can be: the two kept, and their cost on the grid."""

    choices: list[tuple[Choice, Choice]]
    cells: NDArray[np.int64]


class GenotypeSampler:
    """Uniform over the architectures of a space that cost at most `budget`, cell types jointly.

    Of DARTS' cells without `none`, which no discrete one has. Dynamic programming counts the ways
    to complete an architecture with costs rounded down to a grid, so all that fit are counted, and
    a few more; a draw from those is repeated until it fits. Exact up to the rounding of counts to
    float64.
    Raises BudgetError when nothing is as cheap as `budget`.
    """

    def __init__(self, costs: CostTable, budget: float) -> None:
        cheapest = cheapest_cost(costs)
        if not cheapest <= budget:
            raise BudgetError(
                f"no architecture fits a budget of {budget:.10g} {costs.unit}; "
                f"the cheapest costs {cheapest:.10g} {costs.unit}"
            )
        self._costs, self._budget = costs, budget
        # With nothing to spare, all that rounding could make of nothing.
        cell = max(budget - cheapest, 1e-12 * budget) / CELLS
        self._groups = _groups(costs, cell)
        self._ways = _ways(self._groups)

    def draw(self, generator: torch.Generator) -> Architecture:
        """One architecture; the generator alone decides which."""
        while True:
            genotype = self._draw(generator)
            if genotype_cost(self._costs, genotype) <= self._budget:
                return genotype

    def _draw(self, generator: torch.Generator) -> Architecture:
        choices: list[Choice] = []
        left = len(self._ways[0]) - 1
        for group, ways in zip(self._groups, self._ways[1:], strict=True):
            rest = left - group.cells
            up_to = np.where(rest >= 0, ways[np.maximum(rest, 0)], 0.0).cumsum()
            point = torch.rand((), generator=generator, dtype=torch.float64).item() * up_to[-1]
            choice = int(np.searchsorted(up_to, point, side="right"))
            choices += group.choices[choice]
            left -= int(group.cells[choice])
        return self._costs.space.architecture(choices)


def _groups(costs: CostTable, cell: float) -> list[Group]:
    """All groups of the first cell type, then those of the next."""
    space, prices = costs.space, costs.cells.tolist()
    result = []
    for cell_type in range(len(space.types)):
        for group in space.groups():
            options = [Choice(cell_type, e, c) for e in group for c in space.choosable()]
            pairs = [(a, b) for a, b in itertools.combinations(options, 2) if a.edge != b.edge]
            price = np.array([sum(prices[t][e][c] for t, e, c in pair) for pair in pairs])
            # One more than the grid has is as good as any number beyond it.
            cells = np.minimum((price - price.min()) / cell, CELLS + 2).astype(np.int64)
            result.append(Group(pairs, cells))
    return result


def _ways(groups: list[Group]) -> list[Array]:
    """ways[n][r]: choices of groups n, n + 1, ... that take at most r cells together.

    One cell more than the budget has: rounding may lift what just fits across a line.
    """
    ways = [np.ones(CELLS + 2)]
    for group in reversed(groups):
        total = np.zeros(CELLS + 2)
        for cells, count in enumerate(np.bincount(group.cells)[: CELLS + 2]):
            if count:
                total[cells:] += count * ways[0][: CELLS + 2 - cells]
        ways.insert(0, total)
    return ways
