import itertools

import pytest
import torch

from metadnas_ext.errors import ConfigError
from metadnas_ext.space.cost import (
    CostTable,
    cheapest_cost,
    cost_table,
    dearest_cost,
    expected_cost,
    genotype_cost,
)
from metadnas_ext.space.darts import CellShape, DARTSCells, NetworkShape, edges
from metadnas_ext.space.genotype import DARTS_V1, Genotype

CANDIDATES = ("none", "skip_connect", "sep_conv_3x3")


def random_table(nodes, seed, candidates=CANDIDATES):
    generator = torch.Generator().manual_seed(seed)
    size = (2, len(edges(nodes)), len(candidates))
    costs = torch.rand(size, generator=generator, dtype=torch.float64)
    return CostTable("ms", costs, 0.3, DARTSCells(nodes, candidates))


def cells(nodes, candidates):
    """Every discrete cell, as the pairs of a genotype."""
    per_node = [
        [
            ((first, a), (second, b))
            for a, b in itertools.combinations(range(2 + node), 2)
            for first, second in itertools.product(candidates, repeat=2)
        ]
        for node in range(nodes)
    ]
    return [sum(choice, ()) for choice in itertools.product(*per_node)]


def one_hot(nodes, candidates, chosen):
    return torch.eye(len(candidates), dtype=torch.float64)[[candidates.index(c) for c in chosen]]


def test_edges_are_numbered_node_by_node():
    found = [(e.source, e.target_node) for e in edges(3)]
    assert found == [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (2, 2), (3, 2)]
    assert [e.index for e in edges(4)] == list(range(14))
    normal, reduction = (CellShape(1, kind, False, 8, 8, 4, 8, 4) for kind in (False, True))
    assert [reduction.stride(e) for e in edges(2)] == [2, 2, 2, 2, 1]
    assert {normal.stride(e) for e in edges(2)} == {1}


def test_default_geometry_is_the_darts_search_network():
    cells = NetworkShape().cells()
    assert [c.reduction for c in cells] == [i in (2, 5) for i in range(8)]
    assert [c.reduction_prev for c in cells] == [i in (3, 6) for i in range(8)]
    assert [c.channels for c in cells] == [16, 16, 32, 32, 32, 64, 64, 64]
    assert [c.channels_prev for c in cells] == [48, 64, 64, 128, 128, 128, 256, 256]
    assert [c.channels_prev_prev for c in cells] == [48, 48, 64, 64, 128, 128, 128, 256]
    assert [c.size_in for c in cells] == [32, 32, 32, 16, 16, 16, 8, 8]
    assert [c.size_out for c in cells] == [32, 32, 16, 16, 16, 8, 8, 8]
    assert NetworkShape().head_channels == 256


@pytest.mark.parametrize(("layers", "expected"), [(1, set()), (2, {1}), (3, {1, 2}), (4, {1, 2})])
def test_shallow_networks_never_start_with_a_reduction(layers, expected):
    shape = NetworkShape(layers=layers, image_size=5)
    assert shape.reductions() == expected
    assert shape.cells()[-1].size_out == {0: 5, 1: 3, 2: 2}[len(expected)]
    assert cost_table(shape).fixed > 0


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_survival_sums_to_two_edges_per_node(nodes):
    assert float(DARTSCells(nodes).survival().sum()) == pytest.approx(2 * nodes)


def test_expected_cost_of_certain_edges_is_the_genotype_cost():
    # With one node both its edges survive for certain, so a one-hot choice leaves nothing open.
    table = random_table(1, seed=0)
    for normal, reduce in itertools.product(cells(1, CANDIDATES[1:]), repeat=2):
        p = [one_hot(1, CANDIDATES, [name for name, _ in pairs]) for pairs in (normal, reduce)]
        expected = genotype_cost(table, Genotype.of(normal, reduce))
        assert float(expected_cost(table, *p)) == pytest.approx(expected, rel=1e-14)


def test_expected_cost_is_the_mean_over_which_edges_survive():
    table = random_table(2, seed=1)
    chosen = ["skip_connect", "sep_conv_3x3", "sep_conv_3x3", "skip_connect", "sep_conv_3x3"]
    p = one_hot(2, CANDIDATES, chosen)
    index = {(e.source, e.target_node): e.index for e in edges(2)}
    surviving = [
        tuple(
            (chosen[index[s, node]], s) for node, pair in enumerate((first, second)) for s in pair
        )
        for first in itertools.combinations(range(2), 2)
        for second in itertools.combinations(range(3), 2)
    ]
    costs = [
        genotype_cost(table, Genotype.of(a, b)) for a, b in itertools.product(surviving, repeat=2)
    ]
    assert float(expected_cost(table, p, p)) == pytest.approx(sum(costs) / len(costs), rel=1e-14)


def test_expected_cost_has_client_axes_and_gradients():
    table = random_table(2, seed=2)
    p = torch.rand(2, 3, 5, 3, dtype=torch.float64, requires_grad=True)  # (cells, G, edges, cand.)
    costs = expected_cost(table, p[0], p[1])
    assert costs.shape == (3,)
    for g in range(3):
        torch.testing.assert_close(costs[g], expected_cost(table, p[0, g], p[1, g]))
    assert torch.autograd.gradcheck(lambda x: expected_cost(table, x[0], x[1]), p)
    (gradient,) = torch.autograd.grad(costs[1], p)
    assert not gradient[:, [0, 2]].any()
    step = torch.zeros_like(p)
    step[1, 1, 4, 2] = 1e-3
    up, down = (expected_cost(table, *(p.detach() + move)) for move in (step, -step))
    moved = up[1] - down[1]
    assert float(gradient[1, 1, 4, 2]) == pytest.approx(float(moved) / 2e-3, rel=1e-9)


def test_expected_cost_of_single_precision_weights_is_exact_enough():
    table = cost_table(NetworkShape())
    p = torch.full((14, 8), 1 / 8, dtype=torch.bfloat16)
    assert expected_cost(table, p, p).dtype == torch.float64
    assert torch.equal(expected_cost(table, p, p), expected_cost(table, p.double(), p.double()))


def test_expected_cost_rejects_another_shape():
    table = random_table(2, seed=2)
    with pytest.raises(ValueError, match=r"must be \[..., 5, 3\], got \[5, 4\]"):
        expected_cost(table, torch.zeros(5, 4), torch.zeros(5, 4))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("candidates", [CANDIDATES, CANDIDATES[1:]])
def test_extreme_costs_against_all_cells(seed, candidates):
    table = random_table(2, seed, candidates)
    choosable = [c for c in candidates if c != "none"]
    all_cells = cells(2, choosable)
    costs = [genotype_cost(table, Genotype.of(cell, all_cells[0])) for cell in all_cells]
    others = [genotype_cost(table, Genotype.of(all_cells[0], cell)) for cell in all_cells]
    shared = costs[0]
    assert cheapest_cost(table) == pytest.approx(min(costs) + min(others) - shared, rel=1e-14)
    assert dearest_cost(table) == pytest.approx(max(costs) + max(others) - shared, rel=1e-14)


def test_genotype_cost_rejects_what_the_table_does_not_hold():
    with pytest.raises(ValueError, match="cells have 2 nodes, the genotype 4"):
        genotype_cost(random_table(2, 0), DARTS_V1)
    with pytest.raises(
        ValueError, match="no candidate 'max_pool_3x3' here, only none, skip_connect"
    ):
        genotype_cost(random_table(4, 0), DARTS_V1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("unit", "flops"),
        ("cells", torch.zeros(2, 5, 2, dtype=torch.float64)),
        ("cells", torch.zeros(2, 5, 3)),
        ("cells", torch.full((2, 5, 3), float("nan"), dtype=torch.float64)),
        ("cells", torch.full((2, 5, 3), -1.0, dtype=torch.float64)),
        ("fixed", float("inf")),
    ],
)
def test_cost_table_is_checked(field, value):
    table = random_table(2, 0)
    values = {name: getattr(table, name) for name in ("unit", "cells", "fixed", "space")}
    with pytest.raises(ConfigError):
        CostTable(**{**values, field: value})


def test_shape_is_checked():
    with pytest.raises(ConfigError, match="layers must be at least 1, got 0"):
        NetworkShape(layers=0)
    with pytest.raises(ConfigError, match="not only 'none'"):
        NetworkShape(candidates=("none",))
    with pytest.raises(ValueError, match="unknown primitive 'conv'"):
        NetworkShape(candidates=("none", "conv"))
    with pytest.raises(ConfigError, match="got 'ms'"):
        cost_table(NetworkShape(), "ms")
