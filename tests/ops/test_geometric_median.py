"""The geometric median against direct Weiszfeld iterations over whole vectors."""

from __future__ import annotations

import pytest
import torch

from metadnas_ext import aggregate


def normal(clients, columns=30, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(clients, columns, generator=generator, dtype=torch.float64).to(dtype)


def weiszfeld(x, weights=None, smoothing=1e-6, iterations=20_000):
    x = x.double()
    weights = torch.ones(len(x)).double() if weights is None else torch.tensor(weights).double()
    point = (weights[:, None] * x).sum(0) / weights.sum()
    for _ in range(iterations):
        pull = weights / (x - point).norm(dim=1).clamp_min(smoothing)
        before, point = point, (pull[:, None] * x).sum(0) / pull.sum()
        if torch.equal(before, point):
            break
    return point


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("clients", "columns"), [(1, 5), (2, 9), (3, 100), (10, 1), (40, 777)])
def test_equals_direct_iteration(clients, columns, dtype):
    x = normal(clients, columns, dtype) if columns > 1 else normal(11, 1, dtype)
    result = aggregate(x, how="geometric_median")
    assert result.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 1e-7
    torch.testing.assert_close(result.double(), weiszfeld(x), rtol=0, atol=tolerance)


def test_weights():
    x, weights = normal(8), [5, 1, 1, 2, 0.5, 1, 1, 3]
    result = aggregate(x, weights, how="geometric_median")
    torch.testing.assert_close(result, weiszfeld(x, weights), rtol=0, atol=1e-7)
    scaled = aggregate(x, [7 * w for w in weights], how="geometric_median")
    torch.testing.assert_close(result, scaled)


def test_first_iterations():
    x = normal(6)
    for iterations in (1, 2, 5):
        result = aggregate(x, how="geometric_median", iterations=iterations)
        torch.testing.assert_close(result, weiszfeld(x, iterations=iterations))


def test_ends_when_it_moves_little():
    x = normal(20)
    exact = weiszfeld(x)
    errors = [
        float((aggregate(x, how="geometric_median", tolerance=t) - exact).norm())
        for t in (1e-1, 1e-3, 1e-6)
    ]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_clients_that_differ_little():
    x = (1000 + 1e-3 * normal(30, 2000)).double()
    result = aggregate(x, how="geometric_median")
    torch.testing.assert_close(result - 1000, weiszfeld(x) - 1000, rtol=0, atol=1e-9)


def test_smoothing_bounds_the_pull_of_a_client_at_the_median():
    x = torch.tensor([[0.0], [0.0], [1.0]]).double()
    assert aggregate(x, how="geometric_median").item() < 1e-5
    result = aggregate(x, how="geometric_median", smoothing=10.0)
    torch.testing.assert_close(result, x.mean(0))


def test_equal_clients():
    x = normal(1).expand(5, 30)
    torch.testing.assert_close(aggregate(x, how="geometric_median"), x[0])


@pytest.mark.parametrize("scale", [1e4, 1e8, 1e20])
def test_a_minority_far_away_moves_it_little(scale):
    x = normal(21)
    honest = weiszfeld(x[6:])
    x[:6] = scale
    assert (aggregate(x, how="geometric_median") - honest).norm() < 3
    torch.testing.assert_close(
        aggregate(x, how="geometric_median"), weiszfeld(x), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_clients_that_are_left_out(value):
    x = normal(9, dtype=torch.float32)
    more = torch.cat([x, normal(2, dtype=torch.float32)])
    more[9, 3] = value
    weights = [1.0] * 10 + [0.0]
    expected = aggregate(x, how="geometric_median")
    assert torch.equal(aggregate(more, weights, how="geometric_median"), expected)


def test_threads():
    x = normal(300, 500, torch.float32)
    alone = aggregate(x, how="geometric_median")
    torch.set_num_threads(2)
    assert torch.equal(aggregate(x, how="geometric_median"), alone)


def test_whole_state_dicts():
    x = normal(7, 30)
    dicts = [{"a": row[:10].view(2, 5).float(), "b": row[10:], "n": torch.tensor(4)} for row in x]
    result = aggregate(dicts, how="geometric_median")
    exact = weiszfeld(torch.cat([x[:, :10].float().double(), x[:, 10:]], 1))
    torch.testing.assert_close(result["a"].double().flatten(), exact[:10], rtol=0, atol=1e-6)
    torch.testing.assert_close(result["b"], exact[10:], rtol=0, atol=1e-7)
    assert result["n"].item() == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothing": 0}, "smoothing is 0, expected more than 0"),
        ({"smoothing": torch.nan}, "smoothing is nan, expected more than 0"),
        ({"iterations": 0}, "iterations is 0, expected at least 1"),
        ({"tolerance": -1}, "tolerance is -1, expected at least 0"),
        ({"weights": [1, 1]}, r"weights has shape \(2,\), expected \(3,\)"),
        ({"weights": [1, 1, -1]}, "weights"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        aggregate(normal(3), how="geometric_median", **options)


def test_no_client_left():
    x = torch.tensor([[1.0], [torch.nan]])
    with pytest.raises(ValueError, match="no finite client of a weight above 0"):
        aggregate(x, [0, 1], how="geometric_median")
