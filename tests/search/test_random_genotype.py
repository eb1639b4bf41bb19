"""Random architectures against an enumeration of all of them."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from metadnas_ext.errors import BudgetError
from metadnas_ext.search import GenotypeSampler
from metadnas_ext.seeding import generator
from metadnas_ext.space import (
    CostTable,
    DARTSCells,
    Genotype,
    NASBench201Cells,
    NASBench201Genotype,
    NetworkShape,
    cheapest_cost,
    cost_table,
    dearest_cost,
    genotype_cost,
)

CANDIDATES = {
    1: ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3"),
    2: ("skip_connect", "sep_conv_3x3"),
}
"""By number of nodes: 81 and 2,304 architectures."""


def cells(nodes: int, candidates: tuple[str, ...]) -> list[tuple[tuple[str, int], ...]]:
    """Every discrete cell, by the definition."""
    chosen = [c for c in candidates if c != "none"]
    per_node = []
    for node in range(nodes):
        sources = itertools.combinations(range(2 + node), 2)
        per_node.append(
            [
                ((a, one), (b, two))
                for one, two in sources
                for a, b in itertools.product(chosen, repeat=2)
            ]
        )
    return [tuple(itertools.chain(*nodes)) for nodes in itertools.product(*per_node)]


def everything(costs: CostTable) -> list[Genotype]:
    assert isinstance(costs.space, DARTSCells)
    all_cells = cells(costs.space.nodes, costs.candidates)
    return [Genotype.of(normal, reduce) for normal in all_cells for reduce in all_cells]


def measured_table(nodes: int) -> CostTable:
    """Costs of which no two sums are equal, as measured ones."""
    random, candidates = generator(0, "costs"), CANDIDATES[nodes]
    space = DARTSCells(nodes, candidates)
    prices = torch.rand(space.alpha_shape, generator=random, dtype=torch.float64)
    return CostTable("ms", prices, 0.5, space)


def macs_table(nodes: int) -> CostTable:
    return cost_table(NetworkShape(4, 3, nodes, 3, 8, candidates=CANDIDATES[nodes]))


@pytest.mark.parametrize("share", [0.15, 0.4, 1.0])
@pytest.mark.parametrize("table", [macs_table, measured_table])
def test_uniform_over_what_fits(table, share: float) -> None:
    """Chi-square over all architectures within the budget; none outside is ever drawn."""
    costs = table(1)
    low, high = cheapest_cost(costs), dearest_cost(costs)
    budget = low + share * (high - low)
    fitting = {g for g in everything(costs) if genotype_cost(costs, g) <= budget}
    assert 1 < len(fitting) <= 81
    sampler, random = GenotypeSampler(costs, budget), generator(1, "draws")
    each = 100 + 2000 // len(fitting)
    counts = Counter(sampler.draw(random) for _ in range(each * len(fitting)))
    assert set(counts) == fitting
    assert abs(deviation([counts[g] for g in fitting], each)) < 3.5


def deviation(counts: list[int], expected: float) -> float:
    """Of chi-square from its mean, in standard deviations (Wilson and Hilferty 1931)."""
    freedom = len(counts) - 1
    chi_square = sum((count - expected) ** 2 / expected for count in counts)
    scale = 2 / (9 * freedom)
    return ((chi_square / freedom) ** (1 / 3) - (1 - scale)) / scale**0.5


@pytest.mark.parametrize("table", [macs_table, measured_table])
def test_two_nodes_by_cost_and_by_edge(table) -> None:
    """How often an edge has a candidate, and the mean cost, against all that fit."""
    costs = table(2)
    low, high = cheapest_cost(costs), dearest_cost(costs)
    budget = low + 0.35 * (high - low)
    fitting = [g for g in everything(costs) if genotype_cost(costs, g) <= budget]
    expected = Counter(pair for g in fitting for pair in placed(g))
    sampler, random = GenotypeSampler(costs, budget), generator(1, "draws")
    draws = [sampler.draw(random) for _ in range(4000)]
    assert all(genotype_cost(costs, g) <= budget for g in draws)
    found = Counter(pair for g in draws for pair in placed(g))
    for pair, count in expected.items():
        p = count / len(fitting)
        deviation = (p * (1 - p) * len(draws)) ** 0.5
        assert abs(found[pair] - p * len(draws)) < 4.5 * deviation + 1, pair
    prices = torch.tensor([genotype_cost(costs, g) for g in fitting], dtype=torch.float64)
    drawn = torch.tensor([genotype_cost(costs, g) for g in draws], dtype=torch.float64)
    assert abs(drawn.mean() - prices.mean()) < 4.5 * prices.std() / len(draws) ** 0.5


def placed(genotype: Genotype) -> list[tuple[str, int, str, int]]:
    """(cell type, node, candidate, source) of every edge."""
    return [
        (name, at // 2, primitive, source)
        for name in ("normal", "reduce")
        for at, (primitive, source) in enumerate(getattr(genotype, name))
    ]


@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
def test_uniform_over_nasbench201(share: float) -> None:
    """Chi-square over all cells of three candidates, `none` among them, that fit."""
    names = ("none", "skip_connect", "nor_conv_1x1")
    space = NASBench201Cells(names)
    prices = torch.rand(space.alpha_shape, generator=generator(0, "c"), dtype=torch.float64)
    costs = CostTable("ms", prices, 0.5, space)
    low, high = cheapest_cost(costs), dearest_cost(costs)
    budget = low + share * (high - low)
    cells = [NASBench201Genotype(edges) for edges in itertools.product(names, repeat=6)]
    fitting = [cell for cell in cells if genotype_cost(costs, cell) <= budget]
    assert 1 < len(fitting) <= 729
    assert share < 1 or len(fitting) == 729
    sampler, random = GenotypeSampler(costs, budget), generator(1, "draws")
    counts = Counter(sampler.draw(random) for _ in range(30 * len(fitting)))
    assert set(counts) == set(fitting)
    assert abs(deviation([counts[cell] for cell in fitting], 30)) < 3.5


def test_at_the_cheapest_cost_only_the_cheapest() -> None:
    for costs in (macs_table(2), measured_table(2)):
        budget = cheapest_cost(costs)
        sampler, random = GenotypeSampler(costs, budget), generator(0, "draws")
        for _ in range(50):
            assert genotype_cost(costs, sampler.draw(random)) <= budget
    with pytest.raises(BudgetError, match="no architecture fits a budget of"):
        GenotypeSampler(costs, budget * (1 - 1e-9))
    with pytest.raises(BudgetError):
        GenotypeSampler(costs, float("nan"))


def test_the_full_space_without_a_budget_is_uniform_by_node() -> None:
    """Every edge pair and candidate of DARTS' cell equally often where nothing binds."""
    costs = cost_table(NetworkShape(16, 8))
    sampler, random = GenotypeSampler(costs, dearest_cost(costs)), generator(0, "draws")
    draws = [sampler.draw(random) for _ in range(1500)]
    sources = Counter(pairs for g in draws for pairs in [(g.normal[6][1], g.normal[7][1])])
    assert len(sources) == 10
    candidates = Counter(name for g in draws for name, _ in (*g.normal, *g.reduce))
    assert len(candidates) == 7
    for counts in (sources, candidates):
        mean = sum(counts.values()) / len(counts)
        assert all(abs(count - mean) < 5 * mean**0.5 for count in counts.values())


def test_the_generator_decides() -> None:
    costs = macs_table(2)
    sampler = GenotypeSampler(costs, dearest_cost(costs))
    first = [sampler.draw(generator(0, "draws", i)) for i in range(5)]
    assert first == [sampler.draw(generator(0, "draws", i)) for i in reversed(range(5))][::-1]
    assert len(set(first)) > 1
