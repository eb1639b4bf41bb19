from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from metadnas_ext.ops import reference, weighted_mean


def inputs(clients=3, shape=(5, 7), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(clients, *shape, generator=generator, dtype=torch.float64)
    weights = torch.rand(clients, generator=generator, dtype=torch.float64) + 0.1
    return x.to(dtype), weights.to(dtype)


@pytest.mark.parametrize("mean", [weighted_mean, reference.weighted_mean])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("clients", "shape"),
    [(1, (3,)), (3, ()), (2, (0,)), (4, (5, 7)), (100, (33,)), (3, (2047,)), (3, (2, 2049)),
     (2, (3, 0, 2)), (17, (8200,)), (1300, (37,)), (512, (8,)), (1025, (0,))],
)  # fmt: skip
def test_equals_numpy(mean, clients, shape, dtype):
    x, weights = inputs(clients, shape, dtype)
    wide = np.asarray(weights, np.float64)
    expected = np.average(np.asarray(x, np.float64), axis=0, weights=wide)
    result = mean(x, weights)
    assert result.dtype == dtype
    # Added up in float64 and rounded once, whatever the dtype.
    tolerance = torch.finfo(dtype).eps
    np.testing.assert_allclose(result.numpy(), expected, rtol=tolerance, atol=1e-15)


def test_order_of_clients_and_threads():
    x, weights = inputs(7, (50_000,), torch.float32)
    alone = weighted_mean(x, weights)
    torch.set_num_threads(2)
    assert torch.equal(weighted_mean(x, weights), alone)


def test_equal_weights_of_equal_clients():
    x = torch.full((5, 3), 0.1)
    assert torch.equal(weighted_mean(x, torch.ones(5)), x[0])


@pytest.mark.parametrize("mean", [weighted_mean, reference.weighted_mean])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_client_of_weight_0_does_not_reach_the_result(mean, value):
    x, weights = inputs()
    x[1], weights[1] = value, 0
    kept = [0, 2]
    torch.testing.assert_close(mean(x, weights), weighted_mean(x[kept], weights[kept]))
    leaves = [x.requires_grad_(), weights.requires_grad_()]
    grad_x, grad_weights = torch.autograd.grad(mean(*leaves).square().sum(), leaves)
    assert not grad_x[1].any()
    assert grad_weights[kept].isfinite().all()


@pytest.mark.parametrize("mean", [weighted_mean, reference.weighted_mean])
def test_clients_of_weight_0_change_no_bit(mean):
    x, weights = inputs(14, (500,))
    weights[[0, 4, 12, 13]] = 0
    counting = weights > 0
    assert torch.equal(mean(x, weights), mean(x[counting], weights[counting]))


def test_a_client_that_counts_does():
    x, weights = inputs()
    x[1, 2, 3] = torch.nan
    assert weighted_mean(x, weights).isnan().nonzero().tolist() == [[2, 3]]


def test_gradient_at_weight_0_equals_the_twins():
    x, weights = inputs()
    weights[1] = 0
    grads = []
    for mean in (weighted_mean, reference.weighted_mean):
        leaves = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
        grads.append(torch.autograd.grad(mean(*leaves).square().sum(), leaves))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("shape", [(2, 3), ()])
def test_differentiable_twice(shape):
    leaves = [t.requires_grad_() for t in inputs(3, shape)]
    assert gradcheck(weighted_mean, leaves)
    assert gradgradcheck(weighted_mean, leaves)
    assert gradcheck(reference.weighted_mean, leaves)


def test_operator_promises():
    leaves = [t.requires_grad_() for t in inputs()]
    op = torch.ops.metadnas_ext.weighted_mean.default
    torch.library.opcheck(op, leaves)
    torch.library.opcheck(op, inputs(dtype=torch.float32))


def test_compiles():
    compiled = torch.compile(weighted_mean, fullgraph=True, backend="aot_eager")
    grads = []
    for mean in (weighted_mean, compiled):
        leaves = [t.requires_grad_() for t in inputs()]
        grads.append(torch.autograd.grad(mean(*leaves).square().sum(), leaves))
    torch.testing.assert_close(*grads)


def test_layouts():
    x, weights = inputs(4, (5, 6))
    crossed = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(weighted_mean(crossed, weights), weighted_mean(x, weights))
    spread = weights.repeat_interleave(2)[::2]
    assert torch.equal(weighted_mean(x, spread), weighted_mean(x, weights))


def test_meta():
    x, weights = inputs()
    result = weighted_mean(x.to("meta"), weights.to("meta"))
    assert result.is_meta
    assert result.shape == (5, 7)


@pytest.mark.parametrize(
    ("x", "weights", "message"),
    [
        (torch.ones(()), torch.ones(1), r"x has shape \(\), expected \(G, ...\)"),
        (torch.ones(0, 3), torch.ones(0), r"x has shape \(0, 3\), expected \(G, ...\)"),
        (torch.ones(2, 3).half(), torch.ones(2).half(), "x is Half, expected Float or Double"),
        (torch.ones(2, 3).long(), torch.ones(2).long(), "x is Long, expected Float or Double"),
        (torch.ones(2, 3), torch.ones(3), r"weights has shape \(3\), expected \(2\)"),
        (torch.ones(2, 3), torch.ones(2).double(), "weights is Double, expected Float as x"),
        (torch.ones(2, 3), torch.tensor([1.0, -1.0]), r"weights\[1\] is -1.*at least 0"),
        (torch.ones(2, 3), torch.tensor([torch.nan, 1]), r"weights\[0\] is nan, expected a finite"),
        (torch.ones(2, 3), torch.tensor([1, torch.inf]), r"weights\[1\] is inf, expected a finite"),
        (
            torch.ones(2, 3),
            torch.zeros(2),
            "weights sum to 0, expected a finite number of more than 0",
        ),
        (
            torch.ones(2, 3).double(),
            torch.tensor([1.7e308, 1.7e308], dtype=torch.float64),
            "weights sum to inf",
        ),
    ],
)
def test_refuses(x, weights, message):
    with pytest.raises(RuntimeError, match=f"^weighted_mean: {message}"):
        weighted_mean(x, weights)
