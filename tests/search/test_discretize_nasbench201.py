"""Exact discretisation of NAS-Bench-201's cell against all 5^6 = 15625 cells."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch

from metadnas_ext.errors import BudgetError, ConfigError
from metadnas_ext.search import discretize, max_cost_genotype
from metadnas_ext.search.discretize import cheapest_within
from metadnas_ext.search.relaxations import RELAXATIONS
from metadnas_ext.space import (
    Architecture,
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


def row_of(found: Architecture) -> int:
    """Among CELLS."""
    columns = [NAMES.index(name) for name in found.operations()]
    return int((columns == CELLS).all(1).argmax())


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
        row = row_of(found)
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


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["ms", "macs"])
def test_skip_cap_equals_brute_force(seed: int, kind: str) -> None:
    """The cap is on the whole cell of six edges; skip_connect is the best nearly everywhere."""
    alpha = logits(seed)
    alpha[..., NAMES.index("skip_connect")] += 2.5
    table = cost_table(NASBench201Shape(4, 3, image_size=8)) if kind == "macs" else measured(seed)
    scores = over_cells(alpha[0].log_softmax(-1).numpy())
    costs = over_cells(table.cells[0].numpy()) + table.fixed
    skips = (NAMES.index("skip_connect") == CELLS).sum(1)
    reached = set()
    for cap in range(7):
        least = costs[skips <= cap].min()
        assert cheapest_within(table, cap) == pytest.approx(least, rel=1e-12)
        for share in (0.0, 0.2, 1.0):
            budget = cheapest_within(table, cap) + share * (dearest_cost(table) - least)
            found = discretize(alpha, table, budget, max_skips=cap)
            row = row_of(found)
            assert genotype_cost(table, found) <= budget
            assert skips[row] <= cap
            reached.add(int(skips[row]))
            fits = (skips <= cap) & (costs <= budget * (1 - 1e-12))
            assert scores[row] >= scores[fits].max(initial=-np.inf) - 1e-12
        free = discretize(alpha, table, max_skips=cap)
        assert free.operations().count("skip_connect") <= cap
        assert scores[row_of(free)] == pytest.approx(scores[skips <= cap].max(), rel=1e-12)
    assert max(reached) > 2  # beyond what one of the solver's parts could have
    assert discretize(alpha, table, max_skips=6) == discretize(alpha, table)


@pytest.mark.parametrize("name", list(RELAXATIONS))
def test_scores_are_the_relaxations(name: str) -> None:
    """Every edge keeps its best candidate whatever the relaxation; a budget trades their scores."""
    alpha, table = logits(3), measured(3)
    relaxation = RELAXATIONS[name](1.0, 0.5)
    scores = relaxation.log_scores(alpha)
    best = tuple(NAMES[column] for column in scores[0].argmax(-1).tolist())
    assert discretize(alpha, table, relaxation=relaxation) == NASBench201Genotype(best)
    budget = cheapest_cost(table) + 0.3 * (dearest_cost(table) - cheapest_cost(table))
    found = discretize(alpha, table, budget, relaxation=relaxation)
    fits = over_cells(table.cells[0].numpy()) + table.fixed <= budget * (1 + 1e-12)
    sums = over_cells(scores[0].numpy())
    assert sums[row_of(found)] == pytest.approx(sums[fits].max(), rel=1e-12)


def test_a_cap_that_nothing_keeps() -> None:
    only = NASBench201Shape(4, 3, image_size=8, candidates=("skip_connect",))
    with pytest.raises(ConfigError, match=r"max_skips is 5, but only skip_connect .* 6 times"):
        discretize(torch.zeros(1, 6, 1), cost_table(only), max_skips=5)
    with_none = NASBench201Shape(4, 3, image_size=8, candidates=("none", "skip_connect"))
    found = discretize(torch.tensor([0.0, 1.0]).expand(1, 6, 2), cost_table(with_none), max_skips=2)
    assert sorted(found.operations()) == ["none"] * 4 + ["skip_connect"] * 2


def test_impossible() -> None:
    table = cost_table(NASBench201Shape(4, 3, image_size=8))
    cheapest = cheapest_cost(table)
    with pytest.raises(BudgetError, match=re.escape(f"the cheapest costs {cheapest:.10g} macs")):
        discretize(logits(0), table, cheapest - 1)
    with pytest.raises(ValueError, match="one matrix for each of cell"):
        discretize(torch.zeros(2, 6, 5), table)
    with pytest.raises(ValueError, match=r"cell alpha must be \[6, 5\], got \[14, 5\]"):
        discretize(torch.zeros(1, 14, 5), table)
