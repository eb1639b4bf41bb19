from __future__ import annotations

import numpy as np
import pytest
import torch

from metadnas_ext.ops import gram, median, reference_aggregate, squared_distances


def normal(clients, columns, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(clients, columns, generator=generator, dtype=torch.float64).to(dtype)


def direct_distances(x):
    wide = np.asarray(x, np.float64).reshape(len(x), -1)
    return np.stack([np.square(wide - row).sum(1) for row in wide])


@pytest.mark.parametrize("products", [gram, reference_aggregate.gram])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("clients", "columns"),
    [(1, 1), (2, 7), (3, 8), (4, 255), (5, 256), (6, 257), (7, 3001), (9, 0), (70, 100), (255, 33),
     (256, 9), (257, 300), (600, 17), (4, 20_001)],
)  # fmt: skip
def test_equals_numpy(products, clients, columns, dtype):
    x, origin = normal(clients, columns, dtype), normal(1, columns, dtype, seed=1)[0]
    deviation = np.asarray(x, np.float64) - np.asarray(origin, np.float64)
    result = products(x, origin)
    assert result.dtype == torch.float64
    np.testing.assert_allclose(
        result, deviation @ deviation.T, rtol=1e-12, atol=1e-12 * max(columns, 1)
    )


def test_symmetric_to_the_bit():
    x = normal(300, 70)
    assert torch.equal(gram(x, x[0]), gram(x, x[0]).T)


def test_shapes():
    x = normal(5, 24).view(5, 2, 3, 4)
    flat = gram(x.view(5, 24), x[0].view(24))
    assert torch.equal(gram(x, x[0]), flat)
    crossed = x.transpose(1, 3).contiguous().transpose(1, 3)
    assert torch.equal(gram(crossed, crossed[0]), flat)
    assert gram(normal(3, 1)[:, 0], torch.tensor(0.0)).shape == (3, 3)


@pytest.mark.parametrize("clients", [5, 40])
def test_distances_of_close_clients(clients):
    """1e-3 apart around 1e3: without an origin among them, every digit is lost."""
    x = 1000 + 1e-3 * normal(clients, 5000)
    result = squared_distances(gram(x, median(x)))
    np.testing.assert_allclose(result, direct_distances(x), rtol=1e-9)
    assert not result.diagonal().any()


def test_distances_among_the_many_beside_one_far_away():
    x = normal(20, 1000)
    x[3] *= 1e15
    result = squared_distances(gram(x, median(x)))
    np.testing.assert_allclose(result, direct_distances(x), rtol=1e-9)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_client_that_is_not_finite_spoils_only_its_own_products(value):
    x = normal(9, 300)
    clean = gram(x, x[0])
    x[4, 17] = value
    spoilt = gram(x, x[0])
    others = torch.arange(9) != 4
    assert torch.equal(spoilt[others][:, others], clean[others][:, others])
    assert not spoilt[4].isfinite().any()


def test_threads():
    x = normal(70, 20_000)
    alone = gram(x, x[0])
    torch.set_num_threads(2)
    assert torch.equal(gram(x, x[0]), alone)


def test_operator_promises():
    x = normal(5, 7)
    torch.library.opcheck(torch.ops.metadnas_ext.gram.default, (x, x[0]))


def test_compiles():
    x = normal(5, 7)
    compiled = torch.compile(gram, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, x[0]), gram(x, x[0]))


def test_carries_no_gradient():
    x = normal(5, 7).requires_grad_()
    assert not gram(x, x[0]).requires_grad


@pytest.mark.parametrize(
    ("x", "origin", "message"),
    [
        (torch.ones(()), torch.ones(()), r"x has shape \(\), expected \(G, ...\)"),
        (torch.ones(2, 3).half(), torch.ones(3).half(), "x is Half, expected Float or Double"),
        (torch.ones(2, 3), torch.ones(2), r"origin has shape \(2\), expected \(3\)"),
        (torch.ones(2, 3), torch.ones(1, 3), r"origin has shape \(1, 3\), expected \(3\)"),
        (torch.ones(2, 3), torch.ones(3).double(), "origin is Double, expected Float as x"),
    ],
)
def test_refuses(x, origin, message):
    with pytest.raises(RuntimeError, match=f"^gram: {message}"):
        gram(x, origin)
