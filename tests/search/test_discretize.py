import itertools
import math
import time

import numpy as np
import pytest
import torch

from metadnas_ext import _C
from metadnas_ext.errors import BudgetError, ConfigError
from metadnas_ext.search.discretize import (
    cheapest_within,
    discretize,
    max_cost_genotype,
    reference_solve,
)
from metadnas_ext.search.relaxations import Sigmoid
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


def brute_force(scores, costs, nodes, forbidden, fixed, budget, capped=-1, cap=0, parts=1):
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
        per_cell = np.array([c == capped for _, c in operations]).reshape(types // parts, -1).sum(1)
        if max(per_cell) > cap:
            continue
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


@pytest.mark.parametrize("kind", ["floats", "ties"])
@pytest.mark.parametrize("seed", range(21))
def test_solver_equals_brute_force_under_a_cap(seed, kind):
    """Each cell on its own; the capped candidate scores well, and half the time costs nothing.

    A cell may have several parts, as NAS-Bench-201's has three.
    """
    rng = np.random.default_rng(1000 + seed)
    types, nodes, candidates, parts = [
        *((2, 1, 4, 1), (1, 2, 4, 1), (2, 2, 2, 1), (1, 3, 2, 1), (2, 1, 3, 1)),
        *((3, 1, 3, 3), (4, 1, 2, 2)),
    ][seed % 7]
    shape = (types, nodes * (nodes + 3) // 2, candidates)
    draw = rng.random if kind == "floats" else lambda size: rng.integers(0, 3, size).astype(float)
    costs, scores = draw(shape), -draw(shape)
    capped = int(rng.integers(candidates))
    costs[..., capped] *= rng.integers(0, 2)
    scores[..., capped] /= 4
    forbidden = (capped + 1) % candidates if candidates > 2 and seed % 2 else -1
    binds = 0
    for cap in range(2 * nodes * parts + 1):
        for budget in (costs.sum() * 0.3, costs.sum() * 0.5, math.inf):
            problem = (scores, costs, nodes, forbidden, 0.5, budget)
            expected = brute_force(*problem, capped, cap, parts)
            binds += expected != brute_force(*problem)
            for solve in (_C.discretize_solve, reference_solve):
                if expected is None:
                    with pytest.raises(ValueError, match="no architecture fits the budget and the"):
                        solve(*problem, 0.0, capped, cap, parts)
                    continue
                score, cost, kept, chosen = solve(*problem, 0.0, capped, cap, parts)
                assert (score, -cost) == expected[:2]
                assert list(zip(kept, chosen, strict=True)) == expected[2]
    assert binds > 0


def skips(genotype):
    """Of the normal and of the reduction cell."""
    return [
        [name for name, _ in pairs].count("skip_connect")
        for pairs in (genotype.normal, genotype.reduce)
    ]


def costs_of(table):
    return table.cells.numpy()


@pytest.mark.parametrize("seed", range(3))
def test_skip_cap_in_the_full_space(seed):
    """A search that has collapsed: skip_connect is the best candidate nearly everywhere."""
    generator = torch.Generator().manual_seed(seed)
    alpha = torch.stack(random_alpha(4, 8, generator))
    skip = PRIMITIVES.index("skip_connect")
    alpha[..., skip] += 4
    table = random_table(4, PRIMITIVES, generator)
    for share in (0.1, 0.4, 1.0):
        budget = budget_at(table, share)
        problem = (alpha.log_softmax(-1).numpy(), costs_of(table), 4, 0, table.fixed, budget, 0.0)
        scores = []
        for cap in range(9):
            genotype = discretize(tuple(alpha), table, budget, max_skips=cap)
            assert max(skips(genotype)) <= cap
            assert genotype_cost(table, genotype) <= budget
            solution = _C.discretize_solve(*problem, skip, cap)
            scores.append(solution[0])
            if cap in (0, 2):
                assert solution == reference_solve(*problem, skip, cap)
        assert genotype == discretize(tuple(alpha), table, budget)
        assert scores == sorted(scores)
        assert scores[0] < scores[-1]
    assert max(skips(genotype)) > 2
    assert max(skips(discretize(tuple(alpha), max_skips=1))) == 1


@pytest.mark.parametrize("seed", range(6))
def test_cheapest_architecture_under_a_cap(seed):
    """Half the time skip connections are free, as in MACs."""
    generator = torch.Generator().manual_seed(seed)
    table = random_table(1, CANDIDATES, generator)
    if seed % 2:
        table.cells[0, :, 1] = 0
    zero = torch.zeros(2, 4)
    for cap in (0, 1, 2, None):
        capped = (-1, 0) if cap is None else (1, cap)
        prices = costs_of(table)
        expected = -brute_force(-prices, prices, 1, 0, table.fixed, math.inf, *capped)[1]
        assert cheapest_within(table, cap) == expected
        found = discretize((zero, zero), table, expected, max_skips=cap)
        assert genotype_cost(table, found) == expected
        with pytest.raises(BudgetError, match="the cheapest costs"):
            discretize((zero, zero), table, math.nextafter(expected, 0), max_skips=cap)


def test_a_cap_that_nothing_keeps():
    zero = torch.zeros(5, 2)
    table = cost_table(NetworkShape(4, 2, nodes=2, candidates=("none", "skip_connect")))
    with pytest.raises(ConfigError, match=r"max_skips is 3, but only skip_connect .* 4 times"):
        discretize((zero, zero), table, max_skips=3)
    assert skips(discretize((zero, zero), table, max_skips=4)) == [4, 4]


def test_scores_are_the_relaxations():
    """Two strong candidates halve each other's p, but not each other's sigmoid."""
    alpha = torch.full((5, 8), -3.0)
    alpha[:, 4] = 1.5  # p 0.93, sigmoid 0.82
    alpha[2, 4:6] = 2.0  # p 0.50, sigmoid 0.88
    alphas = (alpha, alpha)
    assert [source for _, source in discretize(alphas).normal[2:]] == [1, 2]
    chosen = discretize(alphas, relaxation=Sigmoid()).normal[2:]
    assert chosen == (("sep_conv_3x3", 0), ("sep_conv_3x3", 1))


@pytest.mark.parametrize("cap", [None, 2])
def test_a_hundred_clients_take_less_than_a_second(cap):
    """Five are allowed here: the machines of CI are slower and busy."""
    generator = torch.Generator().manual_seed(0)
    table = cost_table(NetworkShape())
    alphas = [random_alpha(4, 8, generator) for _ in range(100)]
    start = time.process_time()
    for index, alpha in enumerate(alphas):
        discretize(alpha, table, budget_at(table, 0.1 + index / 120), max_skips=cap)
    assert time.process_time() - start < 5


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
        ({"cap": -1}, "the cap must be at least 0"),
        ({"parts": 2}, "whole cells of 2 parts"),
        ({"capped": 0, "forbidden": 1}, "no architecture fits the budget and the cap"),
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
