"""Clients in a cohort beside the same clients one after another: a mixed operation, a supernet."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
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
from metadnas_ext.bench.cases import mixed_op, networks
from metadnas_ext.bench.cases.mixed_op import inputs, last, training, work
from metadnas_ext.bench.cases.networks import CLASSES
from metadnas_ext.nn import MixedOp, Supernet
from metadnas_ext.placement import CPU
from metadnas_ext.space import NetworkShape
from metadnas_ext.space.primitives import PRIMITIVES

ONE_CLIENT = "metadnas_ext, one client"


def mixed_ops(
    channels: int, size: int, stride: int, clients: int, batch: int, device: torch.device = CPU
) -> Setup:
    """`clients` clients with weights of their own; eager code loops over them.

    Beside it, one client with all the images: what the client axis costs.
    """
    total = clients * batch
    x, _, grad = inputs(channels, size, stride, total, device)
    p = torch.rand(clients, len(PRIMITIVES)).softmax(-1).to(device)
    eager = [baseline.MixedOp(channels, stride).to(device) for _ in range(clients)]

    def loop(form: torch.memory_format) -> Variant:
        parts = [
            training(
                copy.deepcopy(module).to(memory_format=form),  # type: ignore[call-overload]
                x_i.contiguous(memory_format=form),
                p_i,
                grad_i.contiguous(memory_format=form),
            )
            for module, x_i, p_i, grad_i in zip(
                eager, torch.split(x, batch), p, torch.split(grad, batch), strict=True
            )
        ]
        return _in_turn(parts)

    def ours() -> Variant:
        module = MixedOp(channels, stride, clients=clients).to(device)
        module.load_state_dict(_stacked(eager))
        return training(module, _by_client(last(x), clients), p, _by_client(last(grad), clients))

    def one_client() -> Variant:
        variant = training(MixedOp(channels, stride).to(device), last(x), p[0], last(grad))
        return Variant(variant.step, variant.parameters, comparable=False)

    return Setup(
        {
            NCHW: lambda: loop(torch.contiguous_format),
            CHANNELS_LAST: lambda: loop(torch.channels_last),
            ONE_CLIENT: one_client,
            OURS: ours,
        },
        mixed_op.TOLERANCE,
        work(channels, size, stride, total),
        graphs=(NCHW, CHANNELS_LAST, ONE_CLIENT, OURS),
    )


def supernets(
    clients: int,
    channels: int,
    layers: int,
    nodes: int,
    batch: int,
    size: int,
    device: torch.device = CPU,
) -> Setup:
    """Each client's cross-entropy, forward and backward, gradients of all weights and of α."""
    torch.manual_seed(0)
    shape = NetworkShape(channels, layers, nodes, CLASSES, size)
    eager = [baseline.Supernet(shape).to(device) for _ in range(clients)]
    x = torch.randn(clients * batch, 3, size, size).to(device)

    def loop(form: torch.memory_format) -> Variant:
        images = torch.split(x.contiguous(memory_format=form), batch)
        copies = (copy.deepcopy(net).to(memory_format=form) for net in eager)  # type: ignore[call-overload]
        return _in_turn([networks.training(*pair) for pair in zip(copies, images, strict=True)])

    def ours() -> Variant:
        net = Supernet(channels, CLASSES, layers, nodes=nodes, image_size=size, clients=clients)
        net.to(device).load_state_dict(_stacked(eager))
        images = _by_client(last(x), clients)  # (G, N, C, H, W)
        labels = (torch.arange(batch) % CLASSES).repeat(clients).to(device)
        parameters = dict(sorted(net.named_parameters()))

        def step() -> Outcome:
            net.zero_grad(set_to_none=True)
            logits = net(images).flatten(0, 1)  # (G * N, classes)
            # The sum over clients of each one's mean, so that clients do not weaken each other.
            torch.autograd.backward(clients * F.cross_entropy(logits, labels))
            grads = [p.grad for p in parameters.values() if p.grad is not None]
            rows = [grad[client] for client in range(clients) for grad in grads]
            return {"the logits": logits.detach(), "the gradient": rows}

        return Variant(step, list(parameters.values()))

    return Setup(
        {
            NCHW: lambda: loop(torch.contiguous_format),
            CHANNELS_LAST: lambda: loop(torch.channels_last),
            OURS: ours,
        },
        networks.TOLERANCE,
        Work(flop=networks.training_flop(shape, clients * batch)),
        graphs=(OURS,),  # a hundred clients in turn are too many kernels for one
    )


def _stacked(modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The clients' state dicts as one with a client axis."""
    states = [module.state_dict() for module in modules]
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def _in_turn(parts: list[Variant]) -> Variant:
    """One client after the other; outcomes one behind the other, as with a client axis."""

    def step() -> Outcome:
        outcomes = [part.step() for part in parts]
        return {name: [t for o in outcomes for t in _as_list(o[name])] for name in outcomes[0]}

    return Variant(step, [tensor for part in parts for tensor in part.parameters])


def _as_list(value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def _by_client(x: Tensor, clients: int) -> Tensor:
    """(G * N, C, H, W) -> (G, N, C, H, W), without a copy."""
    return x.view(clients, -1, *x.shape[1:])


def _mixed_ops(channels: int, size: int) -> Case:
    return Case(
        f"cohort/c{channels}-{size}x{size}",
        f"C {channels}, {size}×{size}",
        mixed_ops,
        {"channels": channels, "size": size, "stride": 1, "clients": 8, "batch": 8},
        {"channels": channels // 4, "size": size // 4, "clients": 2, "batch": 2},
        (*NETWORK_VARIANTS[:2], ONE_CLIENT, OURS),
    )


def _supernets(clients: int) -> Case:
    many = "" if clients == 1 else "s"
    return Case(
        f"supernet_cohort/{clients}-client{many}",
        f"{clients} client{many}, C 16, 8 cells, batch 16",
        supernets,
        {"clients": clients, "channels": 16, "layers": 8, "nodes": 4, "batch": 16, "size": 32},
        {
            "clients": min(clients, 2),
            "channels": 4,
            "layers": 2,
            "nodes": 2,
            "batch": 2,
            "size": 8,
        },
        quick=False,
        large=True,
    )


CASES = (
    _mixed_ops(16, 32),
    _mixed_ops(32, 16),
    _mixed_ops(64, 8),
    *(_supernets(clients) for clients in (1, 8, 32, 100)),
)
