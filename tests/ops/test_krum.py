"""Krum and multi-Krum against pairwise norms of whole clients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metadnas_ext import aggregate
from metadnas_ext.ops import gram, krum_scores, median


def normal(clients, columns=40, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(clients, columns, generator=generator, dtype=torch.float64).to(dtype)


def scores_by_norms(x, byzantine):
    wide = x.double()
    nearest = min(max(len(x) - byzantine - 2, 1), len(x) - 1)
    scores = []
    for i in range(len(x)):
        others = [float((wide[i] - wide[j]).norm()) ** 2 for j in range(len(x)) if j != i]
        scores.append(sum(sorted(others)[:nearest]))
    return np.array(scores)


@pytest.mark.parametrize("byzantine", [0, 1, 3])
@pytest.mark.parametrize("clients", [1, 2, 3, 5, 9, 40])
def test_scores(clients, byzantine):
    x = normal(clients)
    scores = krum_scores(gram(x, median(x)), byzantine)
    np.testing.assert_allclose(scores, scores_by_norms(x, byzantine), rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("clients", "byzantine"), [(3, 0), (5, 1), (12, 2), (40, 18)])
def test_krum_is_the_client_of_the_least_score(clients, byzantine, dtype):
    x = normal(clients, dtype=dtype)
    best = scores_by_norms(x, byzantine).argmin()
    assert torch.equal(aggregate(x, how="krum", byzantine=byzantine), x[best])


@pytest.mark.parametrize("select", [1, 3, 12])
def test_multi_krum_is_the_mean_of_several(select):
    x = normal(12)
    best = scores_by_norms(x, 2).argsort()[:select]
    result = aggregate(x, how="multi_krum", byzantine=2, select=select)
    torch.testing.assert_close(result, x[best].double().mean(0).float())


def test_defaults():
    x = normal(12)
    scores = scores_by_norms(x, 4)  # the most with 2 f + 3 <= 12
    assert torch.equal(aggregate(x, how="krum"), x[scores.argmin()])
    best = scores.argsort()[: 12 - 4]
    torch.testing.assert_close(aggregate(x, how="multi_krum"), x[best].double().mean(0).float())


@pytest.mark.parametrize("clients", [1, 2])
def test_too_few_to_compare(clients):
    x = normal(clients)
    assert aggregate(x, how="krum").tolist() in x.tolist()
    torch.testing.assert_close(aggregate(x, how="multi_krum"), x.mean(0))


def test_clients_that_differ_little():
    x = 1000 + 1e-3 * normal(30, 2000)
    best = scores_by_norms(x, 5).argmin()
    assert torch.equal(aggregate(x, how="krum", byzantine=5), x[best])


@pytest.mark.parametrize("scale", [1e3, 1e15, 1e30])
def test_attackers_far_away(scale):
    x = normal(20, 500)
    x[3:9] = scale * (1 + 1e-3 * normal(6, 500, 1))
    best = scores_by_norms(x, 6).argmin()
    assert best not in range(3, 9)
    assert torch.equal(aggregate(x, how="krum", byzantine=6), x[best])


@pytest.mark.parametrize("how", ["krum", "multi_krum"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_clients_that_are_not_finite_are_left_out(how, value):
    x = normal(11)
    poisoned = torch.cat([x, normal(3)])
    poisoned[11, 0] = poisoned[12, -1] = value
    poisoned[13] = value
    assert torch.equal(aggregate(poisoned, how=how), aggregate(x, how=how))


def test_most_clients_are_not_finite():
    x = normal(9)
    x[:6, 3] = torch.nan
    x[2:6, 4] = torch.inf
    assert torch.equal(aggregate(x, how="krum"), aggregate(x[6:], how="krum"))


def test_products_that_overflow():
    x = normal(7, dtype=torch.float64)
    x[2] *= 1e200
    assert torch.equal(aggregate(x, how="krum"), aggregate(x[torch.arange(7) != 2], how="krum"))
    with pytest.raises(ValueError, match="no finite client"):
        aggregate(torch.tensor([[1e200], [-1e200], [1e220], [-1e220]]).double(), how="krum")


def test_ties_go_to_the_first():
    x = torch.ones(6, 4)
    x[0] = 2
    chosen = aggregate([{"x": row, "who": torch.tensor(g)} for g, row in enumerate(x)], how="krum")
    assert chosen["who"] == 1


def test_order_of_clients_and_threads():
    x = normal(300, 500)
    alone = aggregate(x, how="multi_krum", byzantine=9)
    torch.set_num_threads(2)
    assert torch.equal(aggregate(x, how="multi_krum", byzantine=9), alone)
    flipped = aggregate(x.flip(0), how="krum", byzantine=9)
    assert torch.equal(flipped, aggregate(x, how="krum", byzantine=9))


def test_whole_state_dicts_are_compared():
    """By each entry alone another client would be chosen."""
    x = normal(9, 30, seed=1)
    dicts = [
        {"a": row[:10].view(2, 5), "b": row[10:].double(), "steps": torch.tensor(100 + g)}
        for g, row in enumerate(x)
    ]
    best = int(scores_by_norms(x, 2).argmin())
    assert best != scores_by_norms(x[:, :10], 2).argmin()
    assert best != scores_by_norms(x[:, 10:], 2).argmin()
    result = aggregate(dicts, how="krum", byzantine=2)
    for key, value in dicts[best].items():
        assert result[key].dtype == value.dtype
        assert torch.equal(result[key], value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"byzantine": -1}, "byzantine is -1, expected 0 to 1 for 6 clients"),
        ({"byzantine": 2}, r"byzantine is 2, expected 0 to 1 for 6 clients \(2 \* byzantine \+ 3"),
        ({"select": 0}, "select is 0, expected 1 to 6, the number of clients"),
        ({"select": 7}, "select is 7, expected 1 to 6"),
        ({"weights": [1] * 6}, "weights is given, but how='multi_krum' takes none"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        aggregate(normal(6), how="multi_krum", **options)


def test_no_finite_client():
    with pytest.raises(ValueError, match="no finite client"):
        aggregate(torch.full((4, 2), torch.nan), how="krum")
