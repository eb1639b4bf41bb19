"""The stem against torch.nn.Conv2d and BatchNorm2d."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from metadnas_ext.ops import conv3x3_bn


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def truth(x: Tensor, params: Tensor, channels: int, running: Tensor | None) -> tuple[Tensor, ...]:
    """x (N, H, W, Cin), params (P) -> out (N, H, W, channels), the gradients of its squares."""
    block = nn.Sequential(
        nn.Conv2d(x.shape[-1], channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
    ).double()
    vector_to_parameters(params, block.parameters())
    if running is not None:
        block.eval()
        block[1].running_mean, block[1].running_var = running[0]
    x = x.permute(0, 3, 1, 2).contiguous().requires_grad_()
    out = block(x)
    grad_x, *grads = torch.autograd.grad(out.pow(3).sum(), [x, *block.parameters()])
    return out.detach().permute(0, 2, 3, 1), grad_x.permute(0, 2, 3, 1), parameters_to_vector(grads)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 7, 3), (2, 1, 1, 1), (3, 32, 32, 3), (2, 8, 1, 2)])
def test_is_torchs(shape, training):
    channels = 17
    x = normal(2, *shape).requires_grad_()
    params = normal(2, channels * (9 * shape[-1] + 2), seed=1).requires_grad_()
    running = None if training else normal(2, 1, 2, channels).abs() + 0.5
    counts = torch.tensor([shape[0], shape[0] - 1 + (shape[0] == 2)])
    out, _ = conv3x3_bn(x, params, channels, running=running, counts=counts)
    grads = torch.autograd.grad(out.pow(3).sum(), [x, params])
    out = out.detach()
    for g, used in enumerate(counts.tolist()):
        own = None if running is None else running[g]
        expected = truth(x.detach()[g, :used], params.detach()[g], channels, own)
        actual = (out[g, :used], grads[0][g, :used], grads[1][g])
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9 * float(e.abs().max()))
        assert not out[g, used:].any()
        assert not grads[0][g, used:].any()


def test_differentiable_twice():
    inputs = (normal(1, 2, 3, 2, 1).requires_grad_(), normal(1, 2 * 11, seed=1).requires_grad_())
    assert gradcheck(lambda x, p: conv3x3_bn(x, p, 2)[0], inputs)
    assert gradgradcheck(lambda x, p: conv3x3_bn(x, p, 2)[0], inputs, fast_mode=True)


def test_refuses():
    with pytest.raises(RuntimeError, match=r"params has shape \(1, 9\), expected \(1, 33\)"):
        conv3x3_bn(normal(1, 2, 3, 2, 1), normal(1, 9), 3)
