from __future__ import annotations

import numpy as np
import pytest
import torch

from metadnas_ext.ops import mixtures, reference_aggregate, weighted_mean


def inputs(clients=3, mixed=4, shape=(5, 7), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(clients, *shape, generator=generator, dtype=torch.float64)
    weights = torch.rand(mixed, clients, generator=generator, dtype=torch.float64) + 0.1
    return x.to(dtype), weights.to(dtype)


@pytest.mark.parametrize("mix", [mixtures, reference_aggregate.mixtures])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("clients", "mixed", "shape"),
    [(1, 1, (3,)), (3, 3, ()), (2, 5, (0,)), (4, 0, (3,)), (5, 4, (31,)), (6, 5, (32,)),
     (7, 6, (33,)), (100, 7, (300,)), (300, 8, (5, 13)), (1100, 9, (70,)), (3, 2, (2, 2049))],
)  # fmt: skip
def test_equals_numpy(mix, clients, mixed, shape, dtype):
    x, weights = inputs(clients, mixed, shape, dtype)
    share = np.asarray(weights, np.float64)
    share = share / share.sum(1, keepdims=True)
    expected = np.tensordot(share, np.asarray(x, np.float64), 1)
    result = mix(x, weights)
    assert result.dtype == dtype
    assert result.shape == (mixed, *shape)
    np.testing.assert_allclose(result, expected, rtol=torch.finfo(dtype).eps, atol=1e-14)


@pytest.mark.parametrize("mix", [mixtures, reference_aggregate.mixtures])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_client_of_weight_0_does_not_reach_the_result(mix, value):
    x, weights = inputs(5, 6)
    weights[1:, 2] = 0
    clean = mix(x, weights)
    x[2] = value
    result = mix(x, weights)
    assert torch.equal(result[1:], clean[1:])
    assert not result[0].isfinite().any()


def test_rows_are_weighted_means():
    x, weights = inputs(9, 5, (400,), torch.float32)
    for row, result in zip(weights, mixtures(x, weights), strict=True):
        torch.testing.assert_close(result, weighted_mean(x, row))


def test_threads():
    x, weights = inputs(7, 6, (5000,), torch.float32)
    alone = mixtures(x, weights)
    torch.set_num_threads(2)
    assert torch.equal(mixtures(x, weights), alone)


def test_layouts():
    x, weights = inputs()
    crossed = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(mixtures(crossed, weights.T.contiguous().T), mixtures(x, weights))


def test_operator_promises():
    torch.library.opcheck(torch.ops.metadnas_ext.mixtures.default, inputs())


def test_compiles():
    compiled = torch.compile(mixtures, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs()), mixtures(*inputs()))


def test_carries_no_gradient():
    assert not mixtures(*[t.requires_grad_() for t in inputs()]).requires_grad


@pytest.mark.parametrize(
    ("x", "weights", "message"),
    [
        (torch.ones(()), torch.ones(1, 1), r"x has shape \(\), expected \(G, ...\)"),
        (torch.ones(2, 3).half(), torch.ones(1, 2).half(), "x is Half, expected Float or Double"),
        (torch.ones(2, 3), torch.ones(2), r"weights has shape \(2\), expected \(M, 2\)"),
        (torch.ones(2, 3), torch.ones(2, 3), r"weights has shape \(2, 3\), expected \(M, 2\)"),
        (torch.ones(2, 3), torch.ones(1, 2).double(), "weights is Double, expected Float as x"),
        (
            torch.ones(2, 3),
            torch.tensor([[1.0, 1.0], [1.0, -1.0]]),
            r"weights\[1\]\[1\] is -1, expected a finite number of at least 0",
        ),
        (torch.ones(2, 3), torch.zeros(1, 2), r"weights\[0\] sum to 0, expected a finite number"),
    ],
)
def test_refuses(x, weights, message):
    with pytest.raises(RuntimeError, match=f"^mixtures: {message}"):
        mixtures(x, weights)
