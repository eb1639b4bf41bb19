"""Architectures drawn uniformly from all that fit a budget."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from metadnas_ext.errors import BudgetError
from metadnas_ext.space import CostTable, Edge, Genotype, cheapest_cost, edges, genotype_cost

Array = NDArray[np.float64]
Pair = tuple[str, int]

CELLS = 1024
"""Of the grid that costs are rounded down to: more cells, fewer draws rejected."""


class Node(NamedTuple):
    """What one node of one cell type can be: both its edges, and its cost in cells of the grid."""

    choices: list[tuple[Pair, Pair]]
    cells: NDArray[np.int64]


class GenotypeSampler:
    """Uniform over the genotypes of a space that cost at most `budget`, both cell types jointly.

    Without `none`, which no discrete cell has. Dynamic programming counts the ways to complete an
    architecture with costs rounded down to a grid, so all that fit are counted, and a few more;
    a draw from those is repeated until it fits. Exact up to the rounding of counts to float64.
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
        self._nodes = _nodes(costs, cell)
        self._ways = _ways(self._nodes)

    def draw(self, generator: torch.Generator) -> Genotype:
        """One architecture; the generator alone decides which."""
        while True:
            genotype = self._draw(generator)
            if genotype_cost(self._costs, genotype) <= self._budget:
                return genotype

    def _draw(self, generator: torch.Generator) -> Genotype:
        pairs: list[Pair] = []
        left = len(self._ways[0]) - 1
        for node, ways in zip(self._nodes, self._ways[1:], strict=True):
            rest = left - node.cells
            up_to = np.where(rest >= 0, ways[np.maximum(rest, 0)], 0.0).cumsum()
            point = torch.rand((), generator=generator, dtype=torch.float64).item() * up_to[-1]
            choice = int(np.searchsorted(up_to, point, side="right"))
            pairs += node.choices[choice]
            left -= int(node.cells[choice])
        half = len(pairs) // 2
        return Genotype.of(normal=pairs[:half], reduce=pairs[half:])


def _nodes(costs: CostTable, cell: float) -> list[Node]:
    """All nodes of the normal cell, then those of the reduction cell."""
    result = []
    for table in (costs.normal.tolist(), costs.reduce.tolist()):
        for node in range(costs.nodes):
            into = [edge for edge in edges(costs.nodes) if edge.target_node == node]
            found = [_choice(costs, table, *pair) for pair in _pairs(costs, into)]
            price = np.array([cost for _, cost in found])
            # One more than the grid has is as good as any number beyond it.
            cells = np.minimum((price - price.min()) / cell, CELLS + 2).astype(np.int64)
            result.append(Node([choice for choice, _ in found], cells))
    return result


def _pairs(costs: CostTable, into: list[Edge]) -> list[tuple[tuple[Edge, int], tuple[Edge, int]]]:
    """Two different edges each, with a candidate's column."""
    options = itertools.product(into, costs.choosable())
    both = itertools.combinations(options, 2)
    return [(one, two) for one, two in both if one[0] != two[0]]


def _choice(
    costs: CostTable, table: list[list[float]], one: tuple[Edge, int], two: tuple[Edge, int]
) -> tuple[tuple[Pair, Pair], float]:
    (first, a), (second, b) = one, two
    pairs = ((costs.candidates[a], first.source), (costs.candidates[b], second.source))
    return pairs, table[first.index][a] + table[second.index][b]


def _ways(nodes: list[Node]) -> list[Array]:
    """ways[n][r]: choices of nodes n, n + 1, ... that take at most r cells together.

    One cell more than the budget has: rounding may lift what just fits across a line.
    """
    ways = [np.ones(CELLS + 2)]
    for node in reversed(nodes):
        total = np.zeros(CELLS + 2)
        for cells, count in enumerate(np.bincount(node.cells)[: CELLS + 2]):
            if count:
                total[cells:] += count * ways[0][: CELLS + 2 - cells]
        ways.insert(0, total)
    return ways
