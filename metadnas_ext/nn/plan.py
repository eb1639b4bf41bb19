"""A network of cells as a pure function of flat parameters, for G clients at once.

`NetworkPlan` holds no tensors: it knows the blocks of a network, the layout of its parameters and
running statistics, and how to run it. `Supernet` and `DerivedNet` are modules around it; the
federated code calls it with whole cohorts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metadnas_ext import ops
from metadnas_ext.nn import functional as fn
from metadnas_ext.nn.blocks import Block
from metadnas_ext.nn.layout import FlatLayout
from metadnas_ext.nn.stages import Call, Stage, Weights
from metadnas_ext.placement import to_device
from metadnas_ext.space import Shape
from metadnas_ext.space.primitives import BatchNorm, Conv, parameter_shapes


class Output(NamedTuple):
    """logits (G, N, classes); stats (G, R): batch statistics in the layout of `running`."""

    logits: Tensor
    stats: Tensor


class Features(NamedTuple):
    """What the classifier reads, (G, N, C), and the statistics as in `Output`."""

    features: Tensor
    stats: Tensor


class NetworkPlan:
    """Blocks, layouts and the forward pass of one network: stem, stages, classifier."""

    def __init__(self, shape: Shape, stages: Sequence[Stage]) -> None:
        self.shape = shape
        self.stem = Block(
            (
                Conv("stem.0", (shape.stem_channels, shape.image_channels, 3, 3)),
                BatchNorm("stem.1", shape.stem_channels, True),
            ),
            shape.stem_channels,
            0,
        )
        self.stages = tuple(stages)
        self.head_shapes = {
            "classifier.weight": (shape.classes, shape.head_channels),
            "classifier.bias": (shape.classes,),
        }
        self.blocks = tuple(self._iter_blocks())
        block_shapes = [parameter_shapes(block.parts) for block in self.blocks]
        body = [item for shapes in block_shapes for item in shapes.items()]
        self.parameters = FlatLayout([*body, *self.head_shapes.items()])
        self.body = FlatLayout(body)  # the first columns of `parameters`: all but the classifier
        self.running = FlatLayout(
            (f"{norm.name}.{what}", (norm.channels,))
            for block in self.blocks
            for norm in block.norms
            for what in ("running_mean", "running_var")
        )
        self._sizes = [
            sum(math.prod(s) for s in shapes.values())
            for shapes in (*block_shapes, self.head_shapes)
        ]
        self._positions: dict[tuple[int, int, torch.device], Tensor] = {}
        self._running_sizes = [sum(2 * n.channels for n in b.norms) for b in self.blocks]

    def __call__(
        self,
        theta: Tensor,
        weights: Weights | None,
        x: Tensor,
        *,
        running: Tensor | None = None,
        counts: Tensor | None = None,
        keep: str = "all",
    ) -> Output:
        """Runs the network.

        Args:
            theta: (G, P) parameters.
            weights: mixing weights, or None for a network without mixed edges.
            x: (G, N, H, W, C) images.
            running: (G, R) running statistics: eval mode. None: training mode.
            counts: (G) int64 on the device of x, images that count; see `ops.mixed_op`.
            keep: what stays in memory for the backward pass; see `ops.mixed_op`.
        """
        *parameters, head = self.split_parameters(theta)
        features, stats = self._features(parameters, weights, x, running, counts, keep)
        views = FlatLayout(self.head_shapes.items()).views(head)
        logits = fn.linear(features, views["classifier.weight"], views["classifier.bias"], counts)
        return Output(logits, stats)

    def features(
        self,
        body: Tensor,
        weights: Weights | None,
        x: Tensor,
        *,
        running: Tensor | None = None,
        keep: str = "all",
    ) -> Features:
        """Runs all but the classifier: `body` (G, B) in the layout of that name, rest as above."""
        parameters = torch.split(body, self._sizes[:-1], dim=1)
        return self._features(parameters, weights, x, running, None, keep)

    def _features(
        self,
        parameters: Sequence[Tensor],
        weights: Weights | None,
        x: Tensor,
        running: Tensor | None,
        counts: Tensor | None,
        keep: str,
    ) -> Features:
        statistics: Sequence[Tensor | None] = [None] * len(self.blocks)
        if running is not None:
            statistics = self.split_running(running)
        slices = iter(zip(parameters, statistics, strict=True))
        call = Call(slices, weights, counts, keep)
        before_last = last = self._stem(call, x)
        for stage in self.stages:
            before_last, last = last, stage(call, before_last, last)
        return Features(last.mean((2, 3)), call.statistics())  # (G, N, H, W, C) -> (G, N, C)

    def initial(self, clients: int, generator: torch.Generator | None = None) -> Tensor:
        """Fresh parameters (G, P) on the CPU, the same for every client, by PyTorch's defaults.

        Kaiming-uniform with a = sqrt(5) for convolutions and the linear layer, batch norms at 1, 0;
        ordinary modules as their constructors make them.
        """
        row = torch.empty(self.parameters.size)
        views = self.parameters.views(row)
        norms = {f"{norm.name}.weight" for block in self.blocks for norm in block.norms}
        made = {
            name: value for block in self.blocks for name, value in _module_start(block, generator)
        }
        for name, view in views.items():
            if name in made:
                view.copy_(made[name])
            elif name in norms:
                view.fill_(1)
            elif view.dim() == 1 and name != "classifier.bias":
                view.zero_()
            else:
                fan_in = self.shape.head_channels if view.dim() < 3 else view[0].numel()
                bound = 1 / math.sqrt(fan_in)
                view.uniform_(-bound, bound, generator=generator)
        return row.expand(clients, -1).clone()

    def initial_running(self, clients: int) -> Tensor:
        """Running statistics (G, R) of fresh batch norms, on the CPU: mean 0, variance 1."""
        row = torch.zeros(self.running.size)
        for name, view in self.running.views(row).items():
            if name.endswith("running_var"):
                view.fill_(1)
        return row.expand(clients, -1).clone()

    @torch.no_grad()
    def update_running(
        self, running: Tensor, stats: Tensor, counts: Tensor, momentum: float = fn.MOMENTUM
    ) -> None:
        """running <- (1 - momentum) * running + momentum * stats, variances unbiased, in place.

        running, stats (G, R); counts (G) images in the batch; clients with none keep theirs.
        """
        step = (counts > 0).to(running.dtype)[:, None] * momentum  # (G, 1)
        running.lerp_(self.unbiased(stats, counts), step.expand_as(running))

    @torch.no_grad()
    def unbiased(
        self, stats: Tensor, counts: Tensor, *, size: tuple[int, int] | None = None
    ) -> Tensor:
        """`stats` (G, R) with variances times n / (n - 1), as torch's batch norm keeps them.

        counts (G) images in the batch; size (H, W) of the images if not `shape.image_size`.
        """
        positions = self._variance_positions(size, stats.device)
        n = counts[:, None] * positions  # (G, R), 0 at the means
        # 1 elsewhere and where the batch is empty.
        return stats * torch.where(n > 1, n.to(stats.dtype) / (n - 1).clamp(min=1), 1.0)

    def _variance_positions(self, size: tuple[int, int] | None, device: torch.device) -> Tensor:
        """Pixels a biased variance in `running` averages over; 0 where there is none. (R)"""
        height, width = size or (self.shape.image_size,) * 2
        key = (height, width, device)
        if key not in self._positions:
            self._positions[key] = to_device(self._count_positions(height, width), device)
        return self._positions[key]

    def _count_positions(self, height: int, width: int) -> Tensor:
        def positions(block: Block) -> int:
            if block.module is not None:
                return 0  # its variances are unbiased already
            step = 1 << block.halvings
            return math.ceil(height / step) * math.ceil(width / step)

        parts = [
            torch.tensor([0, positions(block)]).repeat_interleave(norm.channels)
            for block in self.blocks
            for norm in block.norms
        ]
        return torch.cat(parts)

    def split_parameters(self, theta: Tensor) -> Sequence[Tensor]:
        """(G, P) -> one (G, L) per block, the head last. One concatenation in backward."""
        return torch.split(theta, self._sizes, dim=1)

    def split_running(self, running: Tensor) -> list[Tensor]:
        """(G, R) -> one (G, S, 2, C) per block; (G, L) for those that are ordinary modules."""
        parts = torch.split(running, self._running_sizes, dim=1)
        return [
            part
            if block.module is not None
            else part.view(part.shape[0], len(block.norms), 2, block.channels)
            for part, block in zip(parts, self.blocks, strict=True)
        ]

    def _stem(self, call: Call, x: Tensor) -> Tensor:
        params, running = call.take()
        out, stats = ops.conv3x3_bn(
            x, params, self.stem.channels, running=running, counts=call.counts
        )
        call.record(stats)
        return out

    def _iter_blocks(self) -> Iterator[Block]:
        yield self.stem
        for stage in self.stages:
            yield from stage.blocks


def _module_start(block: Block, generator: torch.Generator | None) -> Iterator[tuple[str, Tensor]]:
    """First values of the parameters of a block that is an ordinary module."""
    if block.module is not None and block.module.parts:
        seed = int(torch.randint(2**62, (), generator=generator))
        names = parameter_shapes(block.parts)
        yield from zip(names, block.module.fresh(seed), strict=True)
