"""One mixed operation, forward and backward, per shape and stride."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from metadnas_ext.bench import baseline
from metadnas_ext.bench.case import (
    ALL_GRAPHS,
    CHANNELS_LAST,
    NCHW,
    OURS,
    Case,
    Outcome,
    Setup,
    Variant,
    Work,
)
from metadnas_ext.bench.cases.networks import compile_module
from metadnas_ext.nn import MixedOp
from metadnas_ext.placement import CPU
from metadnas_ext.space.primitives import PRIMITIVES, Conv, layers

TOLERANCE = 5e-3  # a value that rounding takes across a relu's zero changes gradients by 1e-3


def single(channels: int, size: int, stride: int, batch: int, device: torch.device = CPU) -> Setup:
    """All eight candidates on (batch, channels, size, size), gradients of x, p and all weights."""
    x, p, grad = inputs(channels, size, stride, batch, device)
    eager = baseline.MixedOp(channels, stride).to(device)

    def channelslast(module: nn.Module) -> Variant:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return training(module, last(x), p, last(grad))

    def compiled(mode: str) -> Variant:
        module = copy.deepcopy(eager)
        compile_module(module, mode)
        return channelslast(module)

    def ours() -> Variant:
        module = MixedOp(channels, stride).to(device)
        module.load_state_dict(eager.state_dict())
        return training(module, last(x), p, last(grad))

    return Setup(
        {
            NCHW: lambda: training(copy.deepcopy(eager), x, p, grad),
            CHANNELS_LAST: lambda: channelslast(copy.deepcopy(eager)),
            OURS: ours,
        },
        TOLERANCE,
        work(channels, size, stride, batch),
        compiled,
        graphs=ALL_GRAPHS,
    )


def training(module: nn.Module, x: Tensor, p: Tensor, grad: Tensor) -> Variant:
    """Forward and backward with fresh gradients."""
    x, p = x.detach().requires_grad_(), p.detach().clone().requires_grad_()
    weights = dict(module.named_parameters())

    def step() -> Outcome:
        x.grad = p.grad = None
        module.zero_grad(set_to_none=True)
        out = module(x, p)
        out.backward(grad)
        tensors = {"the result": out.detach(), "the gradient of x": x.grad, "of p": p.grad}
        tensors |= {f"the gradient of {name}": weight.grad for name, weight in weights.items()}
        return tensors

    return Variant(step, list(weights.values()))


def inputs(
    channels: int, size: int, stride: int, batch: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """x, mixing weights and the gradient of the result."""
    torch.manual_seed(0)
    x = torch.randn(batch, channels, size, size)
    grad = torch.randn(batch, channels, -(-size // stride), -(-size // stride))
    return x.to(device), torch.rand(len(PRIMITIVES)).softmax(-1).to(device), grad.to(device)


def last(x: Tensor) -> Tensor:
    """In channels-last memory."""
    return x.contiguous(memory_format=torch.channels_last)


def work(channels: int, size: int, stride: int, images: int) -> Work:
    """Of all candidates' convolutions."""
    pixels = (-(-size // stride)) ** 2
    macs = sum(
        layer.macs_per_pixel * pixels
        for primitive in PRIMITIVES
        for layer in layers(primitive, channels, stride)
        if isinstance(layer, Conv)
    )
    return Work(flop=3 * 2.0 * macs * images)


def _single(channels: int, size: int, stride: int) -> Case:
    return Case(
        f"mixed_op/c{channels}-{size}x{size}-s{stride}",
        f"C {channels}, {size}×{size}, stride {stride}",
        single,
        {"channels": channels, "size": size, "stride": stride, "batch": 64},
        {"channels": channels // 4, "size": size // 4, "batch": 2},
    )


CASES = (
    _single(16, 32, 1),
    _single(32, 16, 1),
    _single(64, 8, 1),
    _single(16, 32, 2),
    _single(32, 32, 2),
)
