"""Exact discretisation of NAS-Bench-201's cell against all 5^6 = 15625 cells."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch

from metadnas_ext.errors import BudgetError
from metadnas_ext.search import discretize, max_cost_genotype
from metadnas_ext.space import (
    CostTable,
    NASBench201Cells,
    NASBench201Genotype,
    NASBench201Shape,
    cheapest_cost,
    cost_table,
    dearest_cost,
    genotype_cost,
)

NAMES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
CELLS = np.array(list(itertools.product(range(5), repeat=6)))  # (15625, 6)


def logits(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 6, 5, generator=generator, dtype=torch.float64)


def measured(seed: int) -> CostTable:
    """Costs without structure, as times are."""
    generator = torch.Generator().manual_seed(seed)
    costs = torch.rand(1, 6, 5, generator=generator, dtype=torch.float64)
    return CostTable("ms", costs, 0.7, NASBench201Cells())


def over_cells(table: np.ndarray) -> np.ndarray:
    """Sum over the edges of every cell."""
    return table[np.arange(6), CELLS].sum(1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["ms", "macs"])
def test_equals_brute_force(seed: int, kind: str) -> None:
    alpha = logits(seed)
    table = cost_table(NASBench201Shape(4, 3, image_size=8)) if kind == "macs" else measured(seed)
    scores = over_cells(alpha[0].log_softmax(-1).numpy())
    costs = over_cells(table.cells[0].numpy()) + table.fixed
    assert cheapest_cost(table) == pytest.approx(costs.min(), rel=1e-12)
    assert dearest_cost(table) == pytest.approx(costs.max(), rel=1e-12)
    for share in (0.0, 0.1, 0.35, 0.6, 1.0):
        budget = cheapest_cost(table) + share * (dearest_cost(table) - cheapest_cost(table))
        found = discretize(alpha, table, budget)
        assert isinstance(found, NASBench201Genotype)
        row = int(([NAMES.index(name) for name in found.edges] == CELLS).all(1).argmax())
        assert genotype_cost(table, found) <= budget
        # Sums in another order: a cell on the edge of the budget may fall to either side.
        best = scores[costs <= budget * (1 - 1e-12)].max(initial=-np.inf)
        assert scores[row] >= best - 1e-12
        assert scores[row] <= scores[costs <= budget * (1 + 1e-12)].max() + 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_without_budget_the_best_candidate_of_every_edge(seed: int) -> None:
    """`none` included."""
    alpha = logits(seed)
    best = tuple(NAMES[column] for column in alpha[0].argmax(-1).tolist())
    costs = cost_table(NASBench201Shape(4, 3, image_size=8))
    assert discretize(alpha, costs) == NASBench201Genotype(best)
    assert discretize({"cell": alpha[0]}, costs) == NASBench201Genotype(best)
    assert discretize(alpha, costs, dearest_cost(costs)) == NASBench201Genotype(best)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_dearest_within_a_budget(share: float) -> None:
    table = measured(9)
    costs = over_cells(table.cells[0].numpy()) + table.fixed
    budget = costs.min() + share * (costs.max() - costs.min()) + 1e-12
    found = max_cost_genotype(table, budget, gap=0.0)
    assert genotype_cost(table, found) == pytest.approx(costs[costs <= budget].max(), rel=1e-12)


def test_impossible() -> None:
    table = cost_table(NASBench201Shape(4, 3, image_size=8))
    cheapest = cheapest_cost(table)
    with pytest.raises(BudgetError, match=re.escape(f"the cheapest costs {cheapest:.10g} macs")):
        discretize(logits(0), table, cheapest - 1)
    with pytest.raises(ValueError, match="one matrix for each of cell"):
        discretize(torch.zeros(2, 6, 5), table)
    with pytest.raises(ValueError, match=r"cell alpha must be \[6, 5\], got \[14, 5\]"):
        discretize(torch.zeros(1, 14, 5), table)
