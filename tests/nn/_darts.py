"""The DARTS supernet and evaluation network out of ordinary `torch.nn` modules, in float64.

Written from the public definitions, with the public parameter names, and independent of the
package: nothing here imports it. Two deviations from the public code, both on purpose: factorized
reduce pads odd sizes with zeros behind, and cell 0 is never a reduction (so one layer has none).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pairs = Sequence[tuple[str, int]]
Wiring = list[tuple[int, int, nn.Module]]
"""(source state, node, operation) of each edge, in the order of `_ops`."""


class Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class ReLUConvBN(nn.Module):
    def __init__(self, c_in: int, c_out: int, affine: bool) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(), nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out, affine=affine)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class FactorizedReduce(nn.Module):
    def __init__(self, c_in: int, c_out: int, affine: bool) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(c_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)))
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], 1))


class SeparableConv(nn.Module):
    """SepConv with `repeats` 2, DilConv with `repeats` 1 and dilation 2."""

    def __init__(
        self, c: int, kernel: int, stride: int, dilation: int, repeats: int, affine: bool
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for repeat in range(repeats):
            parts += [
                nn.ReLU(),
                nn.Conv2d(
                    c,
                    c,
                    kernel,
                    stride if repeat == 0 else 1,
                    dilation * (kernel - 1) // 2,
                    dilation,
                    groups=c,
                    bias=False,
                ),
                nn.Conv2d(c, c, 1, bias=False),
                nn.BatchNorm2d(c, affine=affine),
            ]
        self.op = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


def _pool(pool: nn.Module, c: int, affine: bool) -> nn.Module:
    return nn.Sequential(pool, nn.BatchNorm2d(c, affine=affine))


OPS: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "none": lambda c, s, a: Zero(s),
    "max_pool_3x3": lambda c, s, a: _pool(nn.MaxPool2d(3, s, 1), c, a),
    "avg_pool_3x3": lambda c, s, a: _pool(nn.AvgPool2d(3, s, 1, count_include_pad=False), c, a),
    "skip_connect": lambda c, s, a: nn.Identity() if s == 1 else FactorizedReduce(c, c, a),
    "sep_conv_3x3": lambda c, s, a: SeparableConv(c, 3, s, 1, 2, a),
    "sep_conv_5x5": lambda c, s, a: SeparableConv(c, 5, s, 1, 2, a),
    "dil_conv_3x3": lambda c, s, a: SeparableConv(c, 3, s, 2, 1, a),
    "dil_conv_5x5": lambda c, s, a: SeparableConv(c, 5, s, 2, 1, a),
}


class MixedOp(nn.Module):
    def __init__(
        self, c: int, stride: int, candidates: Sequence[str] = tuple(OPS), affine: bool = False
    ) -> None:
        super().__init__()
        self._ops = nn.ModuleList(OPS[name](c, stride, affine) for name in candidates)
        self.double()

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True))


class Cell(nn.Module):
    def __init__(
        self, wiring: Wiring, nodes: int, c_before: int, c_last: int, c: int, reduced_before: bool
    ) -> None:
        super().__init__()
        first = FactorizedReduce if reduced_before else ReLUConvBN
        self.preprocess0 = first(c_before, c, False)
        self.preprocess1 = ReLUConvBN(c_last, c, False)
        self.nodes = nodes
        self.places = [(source, node) for source, node, _ in wiring]
        self._ops = nn.ModuleList(op for _, _, op in wiring)

    def forward(self, before: Tensor, last: Tensor, weights: Tensor | None) -> Tensor:
        states = [self.preprocess0(before), self.preprocess1(last)]
        for node in range(self.nodes):
            states.append(sum(self._inputs(states, node, weights)))
        return torch.cat(states[2:], 1)

    def _inputs(self, states: list[Tensor], node: int, weights: Tensor | None) -> Iterator[Tensor]:
        for i, (source, target) in enumerate(self.places):
            if target == node:
                extra = () if weights is None else (weights[i],)
                yield self._ops[i](states[source], *extra)


class Network(nn.Module):
    """`wire(c, reduction)` gives a cell's operations."""

    def __init__(
        self,
        wire: Callable[[int, bool], Wiring],
        c: int,
        layers: int,
        nodes: int,
        classes: int,
        image_channels: int,
        stem_multiplier: int,
    ) -> None:
        super().__init__()
        before = last = stem_multiplier * c
        self.stem = nn.Sequential(
            nn.Conv2d(image_channels, last, 3, padding=1, bias=False), nn.BatchNorm2d(last)
        )
        self.cells = nn.ModuleList()
        self.reductions = [i > 0 and i in (layers // 3, 2 * layers // 3) for i in range(layers)]
        for i, reduction in enumerate(self.reductions):
            c = 2 * c if reduction else c
            reduced_before = i > 0 and self.reductions[i - 1]
            self.cells.append(Cell(wire(c, reduction), nodes, before, last, c, reduced_before))
            before, last = last, nodes * c
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(last, classes)
        self.double()

    def forward(
        self, x: Tensor, normal: Tensor | None = None, reduce: Tensor | None = None
    ) -> Tensor:
        """`normal` and `reduce`: mixing weights of a supernet."""
        before = last = self.stem(x)
        for cell, reduction in zip(self.cells, self.reductions, strict=True):
            before, last = last, cell(before, last, reduce if reduction else normal)
        return self.classifier(self.global_pooling(last).flatten(1))


def supernet(
    c: int,
    layers: int,
    nodes: int,
    candidates: Sequence[str],
    *,
    classes: int,
    image_channels: int = 3,
    stem_multiplier: int = 3,
) -> Network:
    def wire(c: int, reduction: bool) -> Wiring:
        places = [(source, node) for node in range(nodes) for source in range(2 + node)]
        return [
            (source, node, MixedOp(c, 2 if reduction and source < 2 else 1, candidates))
            for source, node in places
        ]

    return Network(wire, c, layers, nodes, classes, image_channels, stem_multiplier)


def evaluation_network(
    normal: Pairs, reduce: Pairs, c: int, layers: int, *, classes: int, image_channels: int = 3
) -> Network:
    """Two edges a node. As in the supernet, batch norms are not affine and follow pools too."""

    def wire(c: int, reduction: bool) -> Wiring:
        return [
            (source, i // 2, OPS[name](c, 2 if reduction and source < 2 else 1, False))
            for i, (name, source) in enumerate(reduce if reduction else normal)
        ]

    return Network(wire, c, layers, len(normal) // 2, classes, image_channels, 3)
