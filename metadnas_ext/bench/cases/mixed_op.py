"""One mixed operation, forward and backward: per shape and stride, and for a cohort of clients."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from metadnas_ext.bench import baseline
from metadnas_ext.bench.case import (
    CHANNELS_LAST,
    NCHW,
    NETWORK_VARIANTS,
    OURS,
    Case,
    Outcome,
    Setup,
    Variant,
    Work,
)
from metadnas_ext.bench.cases.networks import compile_module
from metadnas_ext.nn import MixedOp
from metadnas_ext.space.primitives import PRIMITIVES, Conv, layers

TOLERANCE = 5e-3  # a value that rounding takes across a relu's zero changes gradients by 1e-3
ONE_CLIENT = "metadnas_ext, one client"


def single(channels: int, size: int, stride: int, batch: int) -> Setup:
    """All eight candidates on (batch, channels, size, size), gradients of x, p and all weights."""
    x, p, grad = _inputs(channels, size, stride, batch)
    eager = baseline.MixedOp(channels, stride)

    def channels_last(module: nn.Module) -> Variant:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return _training(module, _last(x), p, _last(grad))

    def compiled(mode: str) -> Variant:
        module = copy.deepcopy(eager)
        compile_module(module, mode)
        return channels_last(module)

    def ours() -> Variant:
        module = MixedOp(channels, stride)
        module.load_state_dict(eager.state_dict())
        return _training(module, _last(x), p, _last(grad))

    return Setup(
        {
            NCHW: lambda: _training(copy.deepcopy(eager), x, p, grad),
            CHANNELS_LAST: lambda: channels_last(copy.deepcopy(eager)),
            OURS: ours,
        },
        TOLERANCE,
        _work(channels, size, stride, batch),
        compiled,
    )


def cohort(channels: int, size: int, stride: int, clients: int, batch: int) -> Setup:
    """`clients` clients with weights of their own; eager code loops over them.

    Beside it, one client with all the images: what the client axis costs.
    """
    total = clients * batch
    x, _, grad = _inputs(channels, size, stride, total)
    p = torch.rand(clients, len(PRIMITIVES)).softmax(-1)
    eager = [baseline.MixedOp(channels, stride) for _ in range(clients)]

    def loop(form: torch.memory_format) -> Variant:
        parts = [
            _training(
                copy.deepcopy(module).to(memory_format=form),  # type: ignore[call-overload]
                x_i.contiguous(memory_format=form),
                p_i,
                grad_i.contiguous(memory_format=form),
            )
            for module, x_i, p_i, grad_i in zip(
                eager, torch.split(x, batch), p, torch.split(grad, batch), strict=True
            )
        ]
        return Variant(_in_turn(parts), [t for part in parts for t in part.parameters])

    def ours() -> Variant:
        module = MixedOp(channels, stride, clients=clients)
        states = [one.state_dict() for one in eager]
        module.load_state_dict({k: torch.stack([s[k] for s in states]) for k in states[0]})
        return _training(module, _by_client(_last(x), clients), p, _by_client(_last(grad), clients))

    def one_client() -> Variant:
        variant = _training(MixedOp(channels, stride), _last(x), p[0], _last(grad))
        return Variant(variant.step, variant.parameters, comparable=False)

    return Setup(
        {
            NCHW: lambda: loop(torch.contiguous_format),
            CHANNELS_LAST: lambda: loop(torch.channels_last),
            ONE_CLIENT: one_client,
            OURS: ours,
        },
        TOLERANCE,
        _work(channels, size, stride, total),
    )


def _training(module: nn.Module, x: Tensor, p: Tensor, grad: Tensor) -> Variant:
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


def _in_turn(parts: list[Variant]) -> Callable[[], Outcome]:
    """One client after the other; outcomes stacked, as with a client axis."""

    def step() -> Outcome:
        outcomes = [part.step() for part in parts]
        return {name: [t for o in outcomes for t in _as_list(o[name])] for name in outcomes[0]}

    return step


def _as_list(value: object) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)  # type: ignore[call-overload]


def _inputs(channels: int, size: int, stride: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(batch, channels, size, size)
    grad = torch.randn(batch, channels, -(-size // stride), -(-size // stride))
    return x, torch.rand(len(PRIMITIVES)).softmax(-1), grad


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _by_client(x: Tensor, clients: int) -> Tensor:
    """(G * N, C, H, W) -> (G, N, C, H, W), without a copy."""
    return x.view(clients, -1, *x.shape[1:])


def _work(channels: int, size: int, stride: int, images: int) -> Work:
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


def _cohort(channels: int, size: int) -> Case:
    return Case(
        f"cohort/c{channels}-{size}x{size}",
        f"C {channels}, {size}×{size}",
        cohort,
        {"channels": channels, "size": size, "stride": 1, "clients": 8, "batch": 8},
        {"channels": channels // 4, "size": size // 4, "clients": 2, "batch": 2},
        (*NETWORK_VARIANTS[:2], ONE_CLIENT, OURS),
    )


CASES = (
    _single(16, 32, 1),
    _single(32, 16, 1),
    _single(64, 8, 1),
    _single(16, 32, 2),
    _single(32, 32, 2),
    _cohort(16, 32),
    _cohort(32, 16),
    _cohort(64, 8),
)
