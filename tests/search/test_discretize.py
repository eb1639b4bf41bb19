import itertools
import math

import numpy as np
import pytest
import torch

from metadnas_ext import _C
from metadnas_ext.errors import BudgetError, ConfigError
from metadnas_ext.search.discretize import discretize, max_cost_genotype, reference_solve
from metadnas_ext.space.cost import (
    CostTable,
    cheapest_cost,
    cost_table,
    dearest_cost,
    genotype_cost,
)
from metadnas_ext.space.darts import DARTSCells, NetworkShape, edges
from metadnas_ext.space.genotype import Genotype
from metadnas_ext.space.primitives import PRIMITIVES

CANDIDATES = ("none", "skip_connect", "sep_conv_3x3", "dil_conv_5x5")


def random_alpha(nodes, candidates, generator, dtype=torch.float64):
    size = (2, len(edges(nodes)), candidates)
    normal, reduce = torch.randn(size, generator=generator, dtype=dtype)
    return normal, reduce


def random_table(nodes, candidates, generator):
    size = (2, len(edges(nodes)), len(candidates))
    costs = torch.rand(size, generator=generator, dtype=torch.float64)
    return CostTable("ms", costs, 0.7, DARTSCells(nodes, candidates))


def budget_at(table, share):
    low, high = cheapest_cost(table), dearest_cost(table)
    return low + share * (high - low)


def brute_force(scores, costs, nodes, forbidden, fixed, budget):
    """Best (score, -cost, operations) over everything, or None; sums fold as documented."""
    types, _, candidates = scores.shape
    per_node = []
    for cell, node in itertools.product(range(types), range(nodes)):
        first = node * (node + 3) // 2
        operations = [
            (e, c)
            for e in range(first, first + node + 2)
            for c in range(candidates)
            if c != forbidden
        ]
        per_node.append(
            [
                (scores[cell][a] + scores[cell][b], costs[cell][a] + costs[cell][b], (a, b))
                for a, b in itertools.combinations(operations, 2)
                if a[0] != b[0]
            ]
        )
    best = None
    for choice in itertools.product(*per_node):
        score, cost = 0.0, fixed
        for node_score, node_cost, _ in choice:
            score, cost = score + node_score, cost + node_cost
        if cost > budget or (best is not None and (score, -cost) < best[:2]):
            continue
        operations = [op for _, _, pair in choice for op in pair]
        if best is None or (score, -cost) > best[:2] or operations < best[2]:
            best = (score, -cost, operations)
    return best


def darts_rule(alpha):
    """Per node the two edges whose best candidate other than none is the most probable."""
    cell, first = [], 0
    p = torch.softmax(alpha, -1)
    for node in range(4):
        strongest = []
        for source in range(2 + node):
            row = p[first + source].tolist()
            name = max(PRIMITIVES[1:], key=lambda c: row[PRIMITIVES.index(c)])
            strongest.append((row[PRIMITIVES.index(name)], name, source))
        strongest.sort(key=lambda entry: -entry[0])
        cell += sorted(((name, source) for _, name, source in strongest[:2]), key=lambda e: e[1])
        first += 2 + node
    return tuple(cell)


@pytest.mark.parametrize("kind", ["floats", "ties", "proportional"])
@pytest.mark.parametrize("seed", range(30))
def test_solver_equals_brute_force(seed, kind):
    rng = np.random.default_rng(seed)
    types, nodes, candidates = [(2, 1, 4), (1, 2, 4), (2, 2, 2), (1, 3, 2), (2, 1, 3)][seed % 5]
    shape = (types, nodes * (nodes + 3) // 2, candidates)
    # Small integers make many equal sums, which the documented order of ties must resolve; where
    # scores are costs, states of equal cost and score also meet on different ways.
    draw = rng.random if kind == "floats" else lambda size: rng.integers(0, 3, size).astype(float)
    costs = draw(shape)
    scores = costs if kind == "proportional" else -draw(shape)
    forbidden = -1 if seed % 3 == 0 else int(rng.integers(candidates))
    fixed = float(rng.random()) if kind == "floats" else 2.0
    total = fixed + costs.sum()
    for budget in (*(fixed + rng.random(6) * (total - fixed)), math.inf):
        expected = brute_force(scores, costs, nodes, forbidden, fixed, budget)
        arguments = (scores, costs, nodes, forbidden, fixed, budget, 0.0)
        for solve in (_C.discretize_solve, reference_solve):
            if expected is None:
                with pytest.raises(ValueError, match="no architecture fits the budget"):
                    solve(*arguments)
                continue
            score, cost, kept, chosen = solve(*arguments)
            assert (score, -cost) == expected[:2]
            assert cost <= budget
            assert list(zip(kept, chosen, strict=True)) == expected[2]


@pytest.mark.parametrize("seed", range(4))
def test_solver_equals_its_twin_in_the_full_space(seed):
    generator = torch.Generator().manual_seed(seed)
    measured = random_table(4, PRIMITIVES, generator)
    for table in (measured, cost_table(NetworkShape())):
        alpha = torch.stack(random_alpha(4, 8, generator))
        scores = torch.log_softmax(alpha, -1).numpy()
        costs = table.cells.numpy()
        for share in (0.05, 0.3):
            arguments = (scores, costs, 4, 0, table.fixed, budget_at(table, share), 0.0)
            assert _C.discretize_solve(*arguments) == reference_solve(*arguments)


@pytest.mark.parametrize("seed", range(10))
def test_budget_at_the_cost_of_the_best_changes_nothing(seed):
    generator = torch.Generator().manual_seed(seed)
    table = random_table(4, PRIMITIVES, generator)
    alpha = random_alpha(4, 8, generator)
    best = discretize(alpha)
    cost = genotype_cost(table, best)
    assert discretize(alpha, table, cost) == best
    assert discretize(alpha, table, math.inf) == best
    below = discretize(alpha, table, math.nextafter(cost, 0))
    assert below != best
    assert genotype_cost(table, below) < cost


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(20))
def test_without_budget_it_is_the_darts_rule(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    alpha = random_alpha(4, 8, generator, dtype)
    expected = Genotype.of(*(darts_rule(a.double()) for a in alpha))
    assert discretize(alpha) == expected
    assert discretize({"normal": alpha[0], "reduce": alpha[1]}) == expected
    table = random_table(4, PRIMITIVES, generator)
    assert discretize(alpha, table) == expected
    assert discretize(alpha, table, dearest_cost(table)) == expected


def test_none_takes_part_in_the_softmax():
    # Edge 2's best candidate has the largest logit, but `none` takes most of its probability.
    alpha = torch.zeros(5, 8)
    alpha[2:, 4] = torch.tensor([3.0, 2.0, 2.0])
    alpha[2, 0] = 9.0
    assert discretize((alpha, alpha)).normal[2:] == (("sep_conv_3x3", 1), ("sep_conv_3x3", 2))


def test_equal_logits_keep_the_first_edges_and_candidates():
    zero = torch.zeros(14, 8)
    assert set(discretize((zero, zero)).normal) == {("max_pool_3x3", 0), ("max_pool_3x3", 1)}


def test_with_a_budget_equal_scores_take_the_cheaper():
    table = cost_table(NetworkShape())
    zero = torch.zeros(14, 8)
    chosen = discretize((zero, zero), table, dearest_cost(table))
    assert genotype_cost(table, chosen) == cheapest_cost(table)


@pytest.mark.parametrize("seed", range(5))
def test_score_grows_with_the_budget(seed):
    generator = torch.Generator().manual_seed(seed)
    table = random_table(4, PRIMITIVES, generator)
    alpha = random_alpha(4, 8, generator)
    log_p = [torch.log_softmax(a, -1) for a in alpha]
    scores = []
    for share in (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0):
        budget = budget_at(table, share)
        genotype = discretize(alpha, table, budget)
        assert genotype_cost(table, genotype) <= budget
        index = {(e.source, e.target_node): e.index for e in edges(4)}
        scores.append(
            sum(
                float(p[index[source, i // 2], PRIMITIVES.index(name)])
                for p, pairs in zip(log_p, (genotype.normal, genotype.reduce), strict=True)
                for i, (name, source) in enumerate(pairs)
            )
        )
    assert scores == sorted(scores)
    assert scores[0] < scores[-1]


def test_infeasible_budget_names_budget_unit_and_cheapest():
    table = cost_table(NetworkShape())
    cheapest = cheapest_cost(table)
    zero = torch.zeros(14, 8)
    assert genotype_cost(table, discretize((zero, zero), table, cheapest)) == cheapest
    message = rf"budget of 1000000 macs; the cheapest costs {cheapest:.0f} macs"
    with pytest.raises(BudgetError, match=message):
        discretize((zero, zero), table, 1e6)
    with pytest.raises(BudgetError, match=message):
        max_cost_genotype(table, 1e6)


@pytest.mark.parametrize("seed", range(10))
def test_max_cost_genotype_is_dearest(seed):
    generator = torch.Generator().manual_seed(seed)
    table = random_table(1, CANDIDATES, generator)
    stacked = table.cells.numpy()
    for share in (0.0, 0.3, 0.7, 1.0, 2.0):
        budget = budget_at(table, share)
        best, *_ = brute_force(stacked, stacked, 1, 0, table.fixed, budget)
        exact = genotype_cost(table, max_cost_genotype(table, budget, gap=0.0))
        assert exact - table.fixed == pytest.approx(best, rel=1e-14)
        near = genotype_cost(table, max_cost_genotype(table, budget))
        span = min(budget, dearest_cost(table)) - cheapest_cost(table)
        assert exact - span / 256 <= near <= budget


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_max_cost_genotype_of_the_full_space(share):
    generator = torch.Generator().manual_seed(0)
    for table in (cost_table(NetworkShape()), random_table(4, PRIMITIVES, generator)):
        budget = budget_at(table, share)
        genotype = max_cost_genotype(table, budget)
        assert genotype == max_cost_genotype(table, budget)
        span = budget - cheapest_cost(table)
        assert budget - span / 100 <= genotype_cost(table, genotype) <= budget


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_alpha_is_named(value):
    alpha = torch.zeros(14, 8)
    broken = alpha.clone()
    broken[3, 5] = value
    with pytest.raises(ValueError, match=f"reduce alpha is not finite at edge 3, .* 5: {value}"):
        discretize((alpha, broken))


def test_malformed_input():
    table = cost_table(NetworkShape(nodes=2))
    zero = torch.zeros(14, 8)
    with pytest.raises(ConfigError, match="needs a cost table"):
        discretize((zero, zero), budget=1e9)
    with pytest.raises(ConfigError, match="not a number"):
        discretize((zero[:5], zero[:5]), table, math.nan)
    with pytest.raises(ValueError, match=r"normal alpha must be \[5, 8\], got \[14, 8\]"):
        discretize((zero, zero), table, 1e9)
    with pytest.raises(ValueError, match=r"normal alpha must be \[14, 8\], got \[14, 7\]"):
        discretize((zero[:, :7], zero[:, :7]))
    with pytest.raises(ValueError, match="no cell has 13 edges"):
        discretize((zero[:13], zero[:13]))
    with pytest.raises(ValueError, match="alpha has no 'reduce'"):
        discretize({"normal": zero})
    with pytest.raises(ValueError, match=r"reduce alpha must be \[14, 8\], got \[5, 8\]"):
        discretize((zero, zero[:5]))
    with pytest.raises(ConfigError, match="gap must be"):
        max_cost_genotype(table, 1e9, gap=-1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.full((1, 2, 2), -np.inf)}, "a score is not finite"),
        ({"costs": np.full((1, 2, 2), np.nan)}, "a cost is not finite"),
        ({"costs": np.zeros((1, 2, 3))}, "equal in shape"),
        ({"nodes": 2}, "must have 10 entries"),
        ({"nodes": 0}, "at least one"),
        ({"fixed": math.inf}, "fixed cost is not finite"),
        ({"budget": math.nan}, "not a number"),
        ({"gap": math.nan}, "gap"),
        ({"scores": np.zeros((1, 2, 1)), "costs": np.zeros((1, 2, 1)), "forbidden": 0}, "no cand"),
        ({"costs": np.full((1, 2, 2), 1e308)}, "overflow"),
    ],
)
def test_solver_rejects_bad_input(change, message):
    good = {
        "scores": np.zeros((1, 2, 2)),
        "costs": np.zeros((1, 2, 2)),
        "nodes": 1,
        "forbidden": -1,
        "fixed": 0.0,
        "budget": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        _C.discretize_solve(**{**good, **change})


def test_hopelessly_proportional_scores_are_reported_not_swallowed():
    # Every sum is its own trade-off: an exact subset sum over 1e18 architectures.
    rng = np.random.default_rng(0)
    costs = rng.random((2, 14, 8))
    with pytest.raises(RuntimeError, match="proportional, give a gap"):
        _C.discretize_solve(costs, costs, 4, 0, 0.0, 0.5 * 16)
