"""bfloat16 and float16 where kernels take neither: rounded at the ends, float32 in between."""

from __future__ import annotations

import pytest
import torch

from metadnas_ext.nn import Supernet
from metadnas_ext.ops import cell, conv3x3_bn, mixed_op, relu_conv_bn

from ._cases import make_case, relative_error, truth

pytestmark = pytest.mark.cpu
HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("autocast", [True, False])
def test_mixed_op_is_rounded_once(dtype, autocast):
    case = make_case((2, 4, 8, 8, 16), mean=2.0, counts=(4, 3))
    case.x.copy_(case.x.to(dtype))  # values that half precision holds
    expected = truth(case)
    x = case.x.to(torch.float32 if autocast else dtype).requires_grad_()
    weights, params = (t.float().requires_grad_() for t in (case.weights, case.params))
    with torch.autocast("cpu", dtype, enabled=autocast):
        out, stats = mixed_op(x, weights, params, counts=case.counts)
    assert out.dtype == dtype
    assert stats.dtype == torch.float32
    epsilon = torch.finfo(dtype).eps
    assert relative_error(out.detach(), expected.out) < epsilon
    assert relative_error(stats, expected.stats) < 1e-6
    grad_out = case.grad_out.to(dtype)
    grads = torch.autograd.grad(out, (x, weights, params), grad_out)
    assert [g.dtype for g in grads] == [x.dtype, torch.float32, torch.float32]
    for grad, truth_of in zip(grads, expected[2:], strict=True):
        assert relative_error(grad, truth_of) < 4 * epsilon


@pytest.mark.parametrize("dtype", HALF)
def test_layers_under_autocast(dtype):
    x = torch.randn(1, 4, 8, 8, 16)
    params = torch.randn(1, 32 * 16)
    stem = torch.randn(1, 48 * 27 + 2 * 48)
    images = torch.randn(1, 4, 8, 8, 3)
    with torch.autocast("cpu", dtype):
        half = [relu_conv_bn(x, params, 32)[0], conv3x3_bn(images, stem, 48)[0]]
    single = [relu_conv_bn(x, params, 32)[0], conv3x3_bn(images, stem, 48)[0]]
    for a, b in zip(half, single, strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b.to(dtype))


@pytest.mark.parametrize("dtype", HALF)
def test_cell_in_half(dtype):
    s0, s1 = (torch.randn(1, 2, 6, 6, 8).to(dtype) for _ in range(2))
    weights = torch.ones(1, 2, 1)
    params = torch.randn(1, 0)
    graph = ((0, 1), (0, 0), (("max_pool_3x3",), ("skip_connect",)))
    out, _ = cell(s0, s1, weights, params, *graph)
    expected, _ = cell(s0.float(), s1.float(), weights, params, *graph)
    assert torch.equal(out, expected.to(dtype))


def test_float64_is_left_alone_by_autocast():
    case = make_case((1, 2, 4, 4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = mixed_op(case.x, case.weights, case.params)
    assert out.dtype == torch.float64


@pytest.mark.long
@pytest.mark.parametrize("dtype", HALF)
def test_a_supernet_trains_under_autocast(dtype):
    torch.manual_seed(0)
    net = Supernet(C=4, layers=3, nodes=2, image_size=8)
    x, y = torch.randn(8, 3, 8, 8), torch.randint(0, 10, (8,))
    expected = net(x).detach()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", dtype):
            logits = net(x)
            loss = torch.nn.functional.cross_entropy(logits, y)
        if not losses:
            assert relative_error(logits.detach(), expected) < 30 * torch.finfo(dtype).eps
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert net.alphas_normal.grad.dtype == torch.float32
    assert losses[-1] < 0.7 * losses[0]
