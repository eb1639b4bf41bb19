"""NAS-Bench-201's networks out of ordinary `torch.nn` modules, in float64.

Written from the paper (Dong and Yang, ICLR 2020, figure 1 and appendix) with the public parameter
names, and independent of the package: nothing here imports it. Batch norms of the cells are not
affine, as in the search; those of stem, residual blocks and head are. One deviation on purpose:
pooling in the residual block covers odd sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

EDGES = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class ReLUConvBN(nn.Module):
    def __init__(self, c_in: int, c: int, kernel: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(c_in, c, kernel, stride, (kernel - 1) // 2, bias=False),
            nn.BatchNorm2d(c, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


def operation(name: str, c: int, affine: bool = False) -> nn.Module:
    if name == "none":
        return Zero()
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    return ReLUConvBN(c, c, int(name[-1]), 1, affine)


class Residual(nn.Module):
    def __init__(self, c_in: int, c: int) -> None:
        super().__init__()
        self.conv_a = ReLUConvBN(c_in, c, 3, 2, True)
        self.conv_b = ReLUConvBN(c, c, 3, 1, True)
        self.downsample = nn.Sequential(
            nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(c_in, c, 1, bias=False)
        )

    def forward(self, x: Tensor, weights: Tensor | None) -> Tensor:
        return self.conv_b(self.conv_a(x)) + self.downsample(x)


class SearchCell(nn.Module):
    def __init__(self, c: int, candidates: Sequence[str]) -> None:
        super().__init__()
        self.edges = nn.ModuleDict(
            {f"{j}<-{i}": nn.ModuleList(operation(o, c) for o in candidates) for i, j in EDGES}
        )

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        states = [x, *[torch.zeros_like(x)] * 3]
        for (i, j), row in zip(EDGES, weights, strict=True):
            for weight, op in zip(row, self.edges[f"{j}<-{i}"], strict=True):
                states[j] = states[j] + weight * op(states[i])
        return states[3]


class InferCell(nn.Module):
    def __init__(self, c: int, names: Sequence[str], affine: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(operation(name, c, affine) for name in names)

    def forward(self, x: Tensor, weights: Tensor | None) -> Tensor:
        states = [x, *[torch.zeros_like(x)] * 3]
        for (i, j), op in zip(EDGES, self.layers, strict=True):
            states[j] = states[j] + op(states[i])
        return states[3]


class Network(nn.Module):
    def __init__(self, cell: Callable[[int], nn.Module], c: int, n: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, c, 3, padding=1, bias=False), nn.BatchNorm2d(c))
        self.cells = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.cells.append(Residual(c, 2 * c))
                c *= 2
            self.cells.extend(cell(c) for _ in range(n))
        self.lastact = nn.Sequential(nn.BatchNorm2d(c), nn.ReLU())
        self.classifier = nn.Linear(c, classes)
        self.double()

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x, weights)
        return self.classifier(self.lastact(x).mean((2, 3)))


def supernet(c: int, n: int, candidates: Sequence[str], classes: int) -> Network:
    return Network(lambda width: SearchCell(width, candidates), c, n, classes)


def network(names: Sequence[str], c: int, n: int, classes: int, affine: bool = False) -> Network:
    return Network(lambda width: InferCell(width, names, affine), c, n, classes)
