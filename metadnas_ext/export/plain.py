"""A discrete network of ordinary PyTorch layers, with the names and numbers of `DerivedNet`.

Exported programs hold operators of PyTorch only, so they run where this package is not installed;
and every other tool for PyTorch modules (quantisation, pruning, profilers) understands this one.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metadnas_ext.errors import ConfigError
from metadnas_ext.nn import DerivedNet
from metadnas_ext.space import (
    Architecture,
    CellShape,
    CellSpace,
    Edge,
    NASBench201Shape,
    NetworkShape,
    Shape,
)
from metadnas_ext.space.bench_modules import ResidualReduction, norm_relu
from metadnas_ext.space.candidates import ModuleCandidate
from metadnas_ext.space.genotype import INPUTS
from metadnas_ext.space.shape import SearchedCell


class PlainNet(nn.Module):
    """The network of `genotype` as the space's authors define it, in eval mode or training.

    Args:
        shape, genotype: as of `DerivedNet`. Registered primitives are the modules they are.

    Shape: (N, channels, H, W) -> (N, classes).
    """

    def __init__(self, shape: Shape, genotype: Architecture) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(shape.image_channels, shape.stem_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(shape.stem_channels),
        )
        self.cells = nn.ModuleList(_stages(shape, genotype))
        bench = isinstance(shape, NASBench201Shape)
        self.lastact = norm_relu(shape.head_channels) if bench else nn.Identity()
        self.classifier = nn.Linear(shape.head_channels, shape.classes)

    @classmethod
    def of(cls, net: DerivedNet) -> PlainNet:
        """A copy of `net`: the same state dict, dtype and mode. ConfigError with a client axis."""
        if net.clients is not None:
            raise ConfigError(
                f"the network has {net.clients} clients, expected one without an axis"
            )
        plain = cls(net.shape, net.genotype).to(net.flat().dtype)
        # Constants of registered primitives are in no state of `net`: they are as they were made.
        plain.load_state_dict(plain.state_dict() | net.state_dict())
        return plain.train(net.training)

    def forward(self, x: Tensor) -> Tensor:
        before_last = last = self.stem(x)
        for cell in self.cells:
            before_last, last = last, cell(before_last, last)
        # (N, C) -> (N, classes)
        logits: Tensor = self.classifier(self.lastact(last).mean((2, 3)))
        return logits


def _stages(shape: Shape, genotype: Architecture) -> list[nn.Module]:
    """Everything between stem and head: modules of the outputs of the two before."""
    if isinstance(shape, NetworkShape):
        return [_DARTSCell(shape.space, cell, genotype) for cell in shape.cells()]
    assert isinstance(shape, NASBench201Shape)
    stages: dict[int, nn.Module] = {
        block.index: _Reduction(block.channels // 2, block.channels) for block in shape.reductions()
    }
    for cell in shape.cells():
        stages[cell.index] = _BenchCell(shape.space, cell, genotype)
    return [stages[index] for index in sorted(stages)]


class _Cell(nn.Module):
    """Nodes that each add operations on earlier states.

    With partial channels the operations work on the first 1 / K of them; the others go past, and
    channels are shuffled. `operations_name` is that of their list in the public networks.
    """

    operations_name: ClassVar[str]

    def __init__(self, space: CellSpace, cell: SearchedCell, genotype: Architecture) -> None:
        super().__init__()
        chosen = [choice for choice in space.choices(genotype) if choice.type == cell.type]
        self.edges = [space.edges[choice.edge] for choice in chosen]
        self.strides = [cell.stride(edge) for edge in self.edges]
        self.partial = cell.channels // cell.mixed_channels
        operations = nn.ModuleList(
            _operation(space, space.candidates[choice.column], cell.mixed_channels, stride)
            for choice, stride in zip(chosen, self.strides, strict=True)
        )
        self.add_module(self.operations_name, operations)

    def run(self, states: list[Tensor]) -> list[Tensor]:
        """The inputs and, behind them, the nodes."""
        states, inputs = list(states), len(states)
        operations = self.get_submodule(self.operations_name).children()
        for edge, stride, operation in zip(self.edges, self.strides, operations, strict=True):
            out = self._along(edge, stride, operation, states[edge.source])
            if inputs + edge.target_node == len(states):
                states.append(out)
            else:
                states[-1] = states[-1] + out
        return states

    def _along(self, edge: Edge, stride: int, operation: nn.Module, x: Tensor) -> Tensor:
        if self.partial == 1:
            whole: Tensor = operation(x)
            return whole
        own = x.shape[1] // self.partial
        past = x[:, own:]
        if stride == 2:
            past = F.max_pool2d(past, 2, ceil_mode=True)
        both = torch.cat([operation(x[:, :own]), past], 1)
        images, _, height, width = both.shape
        parts = both.view(images, self.partial, own, height, width)
        return parts.transpose(1, 2).flatten(1, 2)  # (N, C, H', W')


class _DARTSCell(_Cell):
    """Two preprocessed inputs; the output concatenates the nodes."""

    operations_name: ClassVar[str] = "_ops"

    def __init__(self, space: CellSpace, cell: CellShape, genotype: Architecture) -> None:
        super().__init__(space, cell, genotype)
        first = _FactorizedReduce if cell.reduction_prev else _ReLUConvBN
        self.preprocess0 = first(cell.channels_prev_prev, cell.channels)
        self.preprocess1 = _ReLUConvBN(cell.channels_prev, cell.channels)

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        states = self.run([self.preprocess0(before_last), self.preprocess1(last)])
        return torch.cat(states[INPUTS:], 1)  # (N, nodes * C, H, W)


class _BenchCell(_Cell):
    """One input; the output is the last node."""

    operations_name: ClassVar[str] = "layers"

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        return self.run([last])[-1]


class _Reduction(ResidualReduction):
    """Between NAS-Bench-201's stages."""

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(last)


def _operation(space: CellSpace, name: str, channels: int, stride: int) -> nn.Module:
    """One operation on `channels` channels."""
    candidate = space.candidate(name)
    if isinstance(candidate, ModuleCandidate):
        return candidate.factory(channels, stride, False)
    if name == "none":
        return _Zero()
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else _FactorizedReduce(channels, channels)
    if name == "max_pool_3x3":
        return nn.Sequential(nn.MaxPool2d(3, stride, 1), _norm(channels))
    if name == "avg_pool_3x3":
        pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        return nn.Sequential(pool, _norm(channels))
    return _DepthwiseConv(name, channels, stride)


class _Zero(nn.Module):
    """`none`, which no discrete cell has at stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class _ReLUConvBN(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        conv = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.op = nn.Sequential(nn.ReLU(), conv, _norm(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class _FactorizedReduce(nn.Module):
    """Two 1x1 convolutions at stride 2, the second shifted by a pixel, zeros behind odd sizes."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels_in, channels_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(channels_in, channels_out // 2, 1, stride=2, bias=False)
        self.bn = _norm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        height, width = x.shape[2:]
        shifted = F.pad(x, (0, width % 2, 0, height % 2))[:, :, 1:, 1:]
        out: Tensor = self.bn(torch.cat((self.conv_1(x), self.conv_2(shifted)), 1))
        return out


class _DepthwiseConv(nn.Module):
    """ReLU, depthwise, pointwise, batch norm: twice for sep_conv, once and dilated for dil_conv."""

    def __init__(self, name: str, channels: int, stride: int) -> None:
        super().__init__()
        kernel = int(name[-1])
        dilation = 2 if name.startswith("dil") else 1
        layers: list[nn.Module] = []
        for step in (stride,) if dilation == 2 else (stride, 1):
            padding = dilation * (kernel // 2)
            layers += [
                nn.ReLU(),
                nn.Conv2d(
                    channels, channels, kernel, step, padding, dilation, channels, bias=False
                ),
                nn.Conv2d(channels, channels, 1, bias=False),
                _norm(channels),
            ]
        self.op = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=False)
