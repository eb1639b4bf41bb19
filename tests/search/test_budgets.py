"""Exact architectures within budgets, from alpha to genotype: against all there are; in time."""

from __future__ import annotations

import itertools
import time

import pytest
import torch

from metadnas_ext.search import discretize
from metadnas_ext.space import (
    PRIMITIVES,
    CostTable,
    DARTSCells,
    Genotype,
    NetworkShape,
    cheapest_cost,
    cost_table,
    dearest_cost,
    edges,
    genotype_cost,
)

CANDIDATES = ("max_pool_3x3", "none", "sep_conv_3x3")
CLIENTS = 100
SECONDS = 1.0


def measured_table(nodes: int, candidates: tuple[str, ...], seed: int) -> CostTable:
    """Random milliseconds."""
    draw = torch.Generator().manual_seed(seed)
    size = (2, len(edges(nodes)), len(candidates))
    costs = torch.rand(size, generator=draw, dtype=torch.float64)
    return CostTable("ms", costs, 0.3, DARTSCells(nodes, candidates))


def every_genotype(nodes: int, candidates: tuple[str, ...]) -> list[Genotype]:
    names = [name for name in candidates if name != "none"]
    per_node = [
        [
            ((first, a), (second, b))
            for a, b in itertools.combinations(range(2 + node), 2)
            for first, second in itertools.product(names, repeat=2)
        ]
        for node in range(nodes)
    ]
    cells = [sum(choice, ()) for choice in itertools.product(*per_node)]
    return [Genotype.of(*pair) for pair in itertools.product(cells, repeat=2)]


def log_p(alpha: torch.Tensor, genotype: Genotype, candidates: tuple[str, ...]) -> float:
    place = {(edge.source, edge.target_node): edge.index for edge in edges(genotype.nodes)}
    logs = alpha.log_softmax(-1)
    return sum(
        float(logs[cell, place[source, index // 2], candidates.index(name)])
        for cell, pairs in enumerate((genotype.normal, genotype.reduce))
        for index, (name, source) in enumerate(pairs)
    )


@pytest.mark.parametrize("seed", range(6))
def test_the_best_of_all_genotypes_that_fit(seed: int) -> None:
    """By the public functions alone: 2304 architectures of two nodes, random alpha and times."""
    table = measured_table(2, CANDIDATES, seed)
    draw = torch.Generator().manual_seed(100 + seed)
    alpha = torch.randn(2, 5, 3, generator=draw, dtype=torch.float64)
    everything = every_genotype(2, CANDIDATES)
    assert len(everything) == len(set(map(str, everything))) == (4 * 12) ** 2
    known = [(log_p(alpha, g, CANDIDATES), genotype_cost(table, g), g) for g in everything]
    assert cheapest_cost(table) == pytest.approx(min(cost for _, cost, _ in known), rel=1e-14)
    for share in (0.0, 0.05, 0.2, 0.5, 1.0):
        budget = cheapest_cost(table) + share * (dearest_cost(table) - cheapest_cost(table))
        fitting = [(score, genotype) for score, cost, genotype in known if cost <= budget]
        _, best = max(fitting, key=lambda entry: entry[0])  # random scores never tie
        assert discretize((alpha[0], alpha[1]), table, budget) == best


@pytest.mark.parametrize("unit", ["macs", "ms"])
def test_a_hundred_clients_in_a_second(unit: str) -> None:
    """Of the processor's time, so that a busy machine does not matter. The space of the paper."""
    table = cost_table(NetworkShape()) if unit == "macs" else measured_table(4, PRIMITIVES, 0)
    low, high = cheapest_cost(table), dearest_cost(table)
    draw = torch.Generator().manual_seed(0)
    alphas = torch.randn(CLIENTS, 2, 14, 8, generator=draw)
    start = time.process_time()
    chosen = [
        discretize((alpha[0], alpha[1]), table, low + (high - low) * (client + 1) / (2 * CLIENTS))
        for client, alpha in enumerate(alphas)
    ]
    seconds = time.process_time() - start
    assert len(set(map(str, chosen))) == CLIENTS
    assert seconds < SECONDS, f"{seconds:.2f} s"
