"""DARTS in ordinary `torch.nn` modules, as research code runs it today: what the package is up to.

Parameters and buffers have the public DARTS names, so state dicts load strictly into the package's
modules and back. Sizes must be even where a cell reduces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metadnas_ext.space import CellShape, Genotype, NetworkShape, edges
from metadnas_ext.space.primitives import PRIMITIVES


class Zero(nn.Module):
    """The candidate `none`: zero times x, which is what eager code computes."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return x.mul(0.0)


class ReLUConvBN(nn.Module):
    """Brings C_in channels to C_out by a 1x1 convolution."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(), nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out, affine=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.op(x))


class FactorizedReduce(nn.Module):
    """Halves H and W: 1x1 convolutions on two grids shifted by a pixel, concatenated."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(c_out, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        halves = torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1)
        return cast(Tensor, self.bn(halves))


class DepthwiseSeparable(nn.Module):
    """ReLU, depthwise, pointwise, batch norm; `repeats` times, the first with the stride."""

    def __init__(self, c: int, kernel: int, stride: int, dilation: int, repeats: int) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        layers: list[nn.Module] = []
        for repeat in range(repeats):
            step = stride if repeat == 0 else 1
            layers += [
                nn.ReLU(),
                nn.Conv2d(c, c, kernel, step, padding, dilation, groups=c, bias=False),
                nn.Conv2d(c, c, 1, bias=False),
                nn.BatchNorm2d(c, affine=False),
            ]
        self.op = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.op(x))


def operation(primitive: str, c: int, stride: int) -> nn.Module:
    """One candidate on c channels."""
    if primitive == "none":
        return Zero(stride)
    if primitive == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(c, c)
    if primitive.endswith("pool_3x3"):
        pool: nn.Module = nn.MaxPool2d(3, stride, padding=1)
        if primitive.startswith("avg"):
            pool = nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
        return nn.Sequential(pool, nn.BatchNorm2d(c, affine=False))
    kernel = int(primitive[-1])
    if primitive.startswith("sep"):
        return DepthwiseSeparable(c, kernel, stride, dilation=1, repeats=2)
    return DepthwiseSeparable(c, kernel, stride, dilation=2, repeats=1)


class MixedOp(nn.Module):
    """Weighted sum of candidates: x (N, C, H, W), weights (O)."""

    def __init__(self, c: int, stride: int, candidates: Iterable[str] = PRIMITIVES) -> None:
        super().__init__()
        self._ops = nn.ModuleList(operation(name, c, stride) for name in candidates)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return cast(Tensor, sum(w * op(x) for w, op in zip(weights, self._ops, strict=True)))


class Cell(nn.Module):
    """Two inputs, then nodes that sum their incoming edges: mixed, or one operation each.

    `wiring` gives (source state, node, operation) of every edge, nodes in order.
    """

    def __init__(
        self, shape: CellShape, nodes: int, wiring: Iterable[tuple[int, int, nn.Module]]
    ) -> None:
        super().__init__()
        first = FactorizedReduce if shape.reduction_prev else ReLUConvBN
        self.preprocess0 = first(shape.channels_prev_prev, shape.channels)
        self.preprocess1 = ReLUConvBN(shape.channels_prev, shape.channels)
        self._ops = nn.ModuleList()
        self._incoming: list[list[tuple[int, int]]] = [[] for _ in range(nodes)]
        for index, (source, node, op) in enumerate(wiring):
            self._incoming[node].append((index, source))
            self._ops.append(op)

    def forward(self, before_last: Tensor, last: Tensor, weights: Tensor | None = None) -> Tensor:
        states = [self.preprocess0(before_last), self.preprocess1(last)]
        for incoming in self._incoming:
            if weights is None:
                states.append(sum(self._ops[i](states[source]) for i, source in incoming))
            else:
                states.append(
                    sum(self._ops[i](states[source], weights[i]) for i, source in incoming)
                )
        return torch.cat(states[2:], dim=1)


class _Network(nn.Module):
    """Stem, cells, head."""

    def __init__(
        self,
        shape: NetworkShape,
        wiring: Callable[[CellShape], Iterable[tuple[int, int, nn.Module]]],
    ) -> None:
        super().__init__()
        cells = shape.cells()
        self.reductions = [cell.reduction for cell in cells]
        self.stem = nn.Sequential(
            nn.Conv2d(shape.image_channels, shape.stem_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(shape.stem_channels),
        )
        self.cells = nn.ModuleList(Cell(cell, shape.nodes, wiring(cell)) for cell in cells)
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(shape.head_channels, shape.classes)

    def _run(self, x: Tensor, weights: tuple[Tensor, Tensor] | None) -> Tensor:
        before_last = last = self.stem(x)
        for cell, reduction in zip(self.cells, self.reductions, strict=True):
            mixing = () if weights is None else (weights[reduction],)
            before_last, last = last, cell(before_last, last, *mixing)
        return cast(Tensor, self.classifier(self.global_pooling(last).flatten(1)))


class Supernet(_Network):
    """All candidates on all edges: (N, channels, H, W) -> (N, classes)."""

    def __init__(self, shape: NetworkShape) -> None:
        def wiring(cell: CellShape) -> Iterable[tuple[int, int, nn.Module]]:
            for edge in edges(shape.nodes):
                op = MixedOp(cell.channels, cell.stride(edge), shape.candidates)
                yield edge.source, edge.target_node, op

        super().__init__(shape, wiring)
        size = (len(edges(shape.nodes)), len(shape.candidates))
        self.alphas_normal = nn.Parameter(1e-3 * torch.randn(size))
        self.alphas_reduce = nn.Parameter(1e-3 * torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, (self.alphas_normal.softmax(-1), self.alphas_reduce.softmax(-1)))

    def arch_parameters(self) -> list[nn.Parameter]:
        return [self.alphas_normal, self.alphas_reduce]

    def weight_parameters(self) -> list[nn.Parameter]:
        """All parameters but α."""
        return [p for name, p in self.named_parameters() if not name.startswith("alphas_")]


class DerivedNet(_Network):
    """A discrete architecture, two edges a node."""

    def __init__(self, shape: NetworkShape, genotype: Genotype) -> None:
        def wiring(cell: CellShape) -> Iterable[tuple[int, int, nn.Module]]:
            pairs = genotype.reduce if cell.reduction else genotype.normal
            for index, (primitive, source) in enumerate(pairs):
                stride = 2 if cell.reduction and source < 2 else 1
                yield source, index // 2, operation(primitive, cell.channels, stride)

        super().__init__(shape, wiring)

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, None)
