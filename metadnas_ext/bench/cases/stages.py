"""Stages bound by memory: a cell's preprocessing, and an optimiser's step on a whole cohort."""

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
from metadnas_ext.ops import adam_rows_, relu_conv_bn
from metadnas_ext.placement import CPU

TOLERANCE = 5e-3  # as of mixed operations
ADAM, FUSED_ADAM = "torch.optim.Adam", "torch.optim.Adam, fused"
CLIP = 5.0


def preprocessing(
    channels_in: int, channels: int, size: int, batch: int, device: torch.device = CPU
) -> Setup:
    """ReLU, 1x1 convolution, batch norm: forward, and gradients of x and the weights."""
    torch.manual_seed(0)
    eager = baseline.ReLUConvBN(channels_in, channels).to(device)
    x = torch.randn(batch, channels_in, size, size).to(device)
    grad = torch.randn(batch, channels, size, size).to(device)

    def modules(form: torch.memory_format) -> Variant:
        module = copy.deepcopy(eager).to(memory_format=form)  # type: ignore[call-overload]
        own = x.contiguous(memory_format=form).requires_grad_()
        given = grad.contiguous(memory_format=form)
        (weight,) = module.parameters()

        def step() -> Outcome:
            out = module(own)
            return _outcome(out, torch.autograd.grad(out, (own, weight), given))

        return Variant(step, [weight])

    def ours() -> Variant:
        own = x.permute(0, 2, 3, 1).contiguous()[None].requires_grad_()  # (1, N, H, W, C)
        given = grad.permute(0, 2, 3, 1).contiguous()[None]
        (weight,) = (p.detach().reshape(1, -1).requires_grad_() for p in eager.parameters())

        def step() -> Outcome:
            out, _ = relu_conv_bn(own, weight, channels)
            by_x, by_weight = torch.autograd.grad(out, (own, weight), given)
            by_weight = by_weight.view(channels, channels_in, 1, 1)
            return _outcome(_nchw(out), (_nchw(by_x), by_weight))

        return Variant(step, [weight])

    # Forward: x to the result. Backward: x, the result and its gradient to that of x.
    moved = 3 * x.nbytes + 3 * grad.nbytes
    return Setup(
        {
            NCHW: lambda: modules(torch.contiguous_format),
            CHANNELS_LAST: lambda: modules(torch.channels_last),
            OURS: ours,
        },
        TOLERANCE,
        Work(bytes=moved),
        graphs=ALL_GRAPHS,
    )


def adam(clients: int, width: int, device: torch.device = CPU) -> Setup:
    """Adam on (clients, width), each client's gradient clipped to a norm.

    A step goes on from the last one: only first steps are compared.
    """
    torch.manual_seed(0)
    start, grad = (torch.randn(clients, width).to(device) for _ in range(2))

    def modules(fused: bool) -> Variant:
        rows = [nn.Parameter(row.clone()) for row in start]
        optimizers = [torch.optim.Adam([row], lr=1e-3, fused=fused) for row in rows]

        def step() -> Outcome:
            for row, own, optimizer in zip(rows, grad, optimizers, strict=True):
                row.grad = own.clone()
                nn.utils.clip_grad_norm_(row, CLIP)
                optimizer.step()
            return {"the weights": [row.detach() for row in rows]}

        return Variant(step, rows)

    def ours() -> Variant:
        rows = start.clone()
        mean, square = torch.zeros_like(rows), torch.zeros_like(rows)
        steps = torch.zeros(clients, device=device)

        def step() -> Outcome:
            adam_rows_(rows, grad, mean, square, steps, lr=1e-3, clip=CLIP)
            return {"the weights": rows}

        return Variant(step, [rows])

    makers = {ADAM: lambda: modules(False), FUSED_ADAM: lambda: modules(True), OURS: ours}
    # The gradient for its norm; then it, weights and both moments, of which three are written.
    return Setup(makers, TOLERANCE, Work(bytes=8 * start.nbytes))


def _outcome(out: Tensor, grads: tuple[Tensor, ...]) -> Outcome:
    by_x, by_weight = grads
    return {
        "the result": out.detach(),
        "the gradient of x": by_x,
        "the gradient of the weights": by_weight,
    }


def _nchw(x: Tensor) -> Tensor:
    """(1, N, H, W, C) -> (N, C, H, W), without a copy."""
    return x[0].permute(0, 3, 1, 2)


def _preprocessing(channels_in: int, channels: int, size: int) -> Case:
    return Case(
        f"stage/relu-conv-bn-{channels_in}-{channels}-{size}x{size}",
        f"preprocessing, {channels_in} to {channels}, {size}×{size}",
        preprocessing,
        {"channels_in": channels_in, "channels": channels, "size": size, "batch": 64},
        {"channels_in": channels_in // 4, "channels": channels // 4, "size": 4, "batch": 2},
        quick=False,
    )


CASES = (
    _preprocessing(64, 16, 32),
    _preprocessing(128, 32, 16),
    _preprocessing(256, 64, 8),
    Case(
        "stage/adam-32",
        "Adam with clipping, 32 × 2 M weights",
        adam,
        {"clients": 32, "width": 2_000_000},
        {"clients": 3, "width": 100},
        (ADAM, FUSED_ADAM, OURS),
        quick=False,
    ),
)
