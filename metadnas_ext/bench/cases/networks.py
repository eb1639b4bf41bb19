"""Whole networks: a training step of the supernet, and training and inference of a derived net."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
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
from metadnas_ext.fuse import fuse
from metadnas_ext.nn import DerivedNet, Supernet
from metadnas_ext.placement import CPU
from metadnas_ext.space import DARTS_V2, NetworkShape, cost_table, genotype_cost

TOLERANCE = 5e-2  # single precision, through a whole network of relus
CLASSES = 10


def supernet(
    channels: int, layers: int, nodes: int, batch: int, size: int, device: torch.device = CPU
) -> Setup:
    """Cross-entropy, forward and backward, gradients of all weights and of α."""
    torch.manual_seed(0)
    shape = NetworkShape(channels, layers, nodes, CLASSES, size)
    return _setup(
        baseline.Supernet(shape),
        lambda: Supernet(channels, CLASSES, layers, nodes=nodes, image_size=size),
        torch.randn(batch, 3, size, size),
        training,
        Work(flop=training_flop(shape, batch)),
        device,
    )


def fused(
    channels: int, layers: int, nodes: int, batch: int, size: int, device: torch.device = CPU
) -> Setup:
    """The same step of the ordinary modules themselves, behind `fuse`."""
    torch.manual_seed(0)
    shape = NetworkShape(channels, layers, nodes, CLASSES, size)
    eager = baseline.Supernet(shape)

    def ours() -> nn.Module:
        net = copy.deepcopy(eager)
        fuse(net)
        return net

    return _setup(eager, ours, torch.randn(batch, 3, size, size), training, Work(), device)


def derived(channels: int, layers: int, batch: int, size: int, device: torch.device = CPU) -> Setup:
    """The second-order DARTS genotype: cross-entropy, forward and backward."""
    eager, ours, x, macs = _derived(channels, layers, batch, size)
    return _setup(eager, ours, x, training, Work(flop=3 * 2 * macs * batch), device)


def derived_inference(
    channels: int, layers: int, batch: int, size: int, device: torch.device = CPU
) -> Setup:
    """The second-order DARTS genotype in eval mode, without gradients."""
    eager, ours, x, macs = _derived(channels, layers, batch, size)
    return _setup(eager, ours, x, inference, Work(flop=2 * macs * batch), device)


def training_flop(shape: NetworkShape, images: int) -> float:
    """Of a supernet's convolutions and products, forward and backward."""
    costs = cost_table(shape)
    return 3 * 2 * (costs.fixed + float(costs.cells.sum())) * images


def compile_parts(net: nn.Module, mode: str) -> None:
    """Compiles a supernet mixed operation by mixed operation, a derived net cell by cell, in place.

    Mixed operations of one shape share their code. A cell of a supernet takes minutes, and the
    whole supernet over half an hour.
    """
    kind = baseline.Cell if isinstance(net, baseline.DerivedNet) else baseline.MixedOp
    for part in net.modules():
        if isinstance(part, kind):
            compile_module(part, mode)


def compile_module(module: nn.Module, mode: str) -> None:
    """Compiles a module for the shapes it will see, in place."""
    # Cases differ in shape and share their code: beyond the limit they would silently run eagerly.
    torch._dynamo.config.recompile_limit = 64
    module.compile(mode=mode, dynamic=False)


def _derived(
    channels: int, layers: int, batch: int, size: int
) -> tuple[nn.Module, Callable[[], nn.Module], Tensor, float]:
    torch.manual_seed(0)
    shape = NetworkShape(channels, layers, classes=CLASSES, image_size=size)
    eager = baseline.DerivedNet(shape, DARTS_V2)
    macs = genotype_cost(cost_table(shape), DARTS_V2)
    x = torch.randn(batch, 3, size, size)
    return eager, lambda: DerivedNet(shape, DARTS_V2), x, macs


def _setup(
    eager: nn.Module,
    make_ours: Callable[[], nn.Module],
    x: Tensor,
    variant: Callable[[nn.Module, Tensor], Variant],
    work: Work,
    device: torch.device,
) -> Setup:
    eager, x = eager.to(device), x.to(device)
    last = x.contiguous(memory_format=torch.channels_last)

    def channels_last(mode: str | None = None) -> Variant:
        net = copy.deepcopy(eager).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if mode is not None:
            compile_parts(net, mode)
        return variant(net, last)

    def ours() -> Variant:
        net = make_ours().to(device)
        net.load_state_dict(eager.state_dict())
        return variant(net, last)

    return Setup(
        {
            NCHW: lambda: variant(copy.deepcopy(eager), x),
            CHANNELS_LAST: channels_last,
            OURS: ours,
        },
        TOLERANCE,
        work,
        channels_last,
        graphs=ALL_GRAPHS,
    )


def training(net: nn.Module, x: Tensor) -> Variant:
    """Cross-entropy, forward and backward with fresh gradients."""
    labels = (torch.arange(len(x)) % CLASSES).to(x.device)
    parameters = dict(sorted(net.named_parameters()))

    def step() -> Outcome:
        net.zero_grad(set_to_none=True)
        logits = net(x)
        torch.autograd.backward(F.cross_entropy(logits, labels))
        grads = [p.grad for p in parameters.values() if p.grad is not None]
        return {"the logits": logits.detach(), "the gradient": grads}

    return Variant(step, list(parameters.values()))


def inference(net: nn.Module, x: Tensor) -> Variant:
    net.eval()

    @torch.no_grad()
    def step() -> Outcome:
        return {"the logits": net(x)}

    return Variant(step, list(net.parameters()))


def _supernets(channels: int, layers: int, batch: int, quick: bool) -> list[Case]:
    return [
        Case(
            f"{group}/c{channels}-{layers}-cells-b{batch}",
            f"C {channels}, {layers} cells, batch {batch}",
            make,
            {"channels": channels, "layers": layers, "nodes": 4, "batch": batch, "size": 32},
            {"channels": 4, "layers": 3, "nodes": 2, "batch": 2, "size": 8},
            quick=quick,
        )
        for group, make in (("supernet", supernet), ("fuse", fused))
    ]


def _both_derived(channels: int, layers: int, batch: int, quick: bool) -> list[Case]:
    return [
        Case(
            f"derived/{what}-c{channels}-{layers}-cells-b{batch}",
            f"{what}, C {channels}, {layers} cells, batch {batch}",
            make,
            {"channels": channels, "layers": layers, "batch": batch, "size": 32},
            {"channels": 4, "layers": 3, "batch": 2, "size": 8},
            quick=quick,
        )
        for what, make in (("train", derived), ("infer", derived_inference))
    ]


CASES = (
    *_supernets(8, 5, 16, quick=True),
    *_supernets(16, 8, 64, quick=False),
    *_both_derived(16, 8, 32, quick=True),
    *_both_derived(36, 20, 96, quick=False),
)
