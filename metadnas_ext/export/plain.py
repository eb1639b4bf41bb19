"""A discrete network of ordinary PyTorch layers, with the names and numbers of `DerivedNet`.

Exported programs hold operators of PyTorch only, so they run where this package is not installed;
and every other tool for PyTorch modules (quantisation, pruning, profilers) understands this one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metadnas_ext.errors import ConfigError
from metadnas_ext.nn import DerivedNet
from metadnas_ext.space import CellShape, Genotype, NetworkShape
from metadnas_ext.space.genotype import INPUTS, KEPT


class PlainNet(nn.Module):
    """The network of `genotype` as Liu et al. (2019) define it, in eval mode or training.

    Args:
        shape, genotype: as of `DerivedNet`.

    Shape: (N, channels, H, W) -> (N, classes). Raises ConfigError on a primitive that is not of
    DARTS, such as one a user registered.
    """

    def __init__(self, shape: NetworkShape, genotype: Genotype) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(shape.image_channels, shape.stem_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(shape.stem_channels),
        )
        self.cells = nn.ModuleList(_Cell(cell, genotype) for cell in shape.cells())
        self.classifier = nn.Linear(shape.head_channels, shape.classes)

    @classmethod
    def of(cls, net: DerivedNet) -> PlainNet:
        """A copy of `net`: the same state dict, dtype and mode. ConfigError with a client axis."""
        if net.clients is not None:
            raise ConfigError(
                f"the network has {net.clients} clients, expected one without an axis"
            )
        plain = cls(net.shape, net.genotype).to(net.flat().dtype)
        plain.load_state_dict(net.state_dict())
        return plain.train(net.training)

    def forward(self, x: Tensor) -> Tensor:
        before_last = last = self.stem(x)
        for cell in self.cells:
            before_last, last = last, cell(before_last, last)
        logits: Tensor = self.classifier(last.mean((2, 3)))  # (N, C) -> (N, classes)
        return logits


class _Cell(nn.Module):
    """Nodes that each add two operations on earlier states; their concatenation."""

    def __init__(self, shape: CellShape, genotype: Genotype) -> None:
        super().__init__()
        first = _FactorizedReduce if shape.reduction_prev else _ReLUConvBN
        self.preprocess0 = first(shape.channels_prev_prev, shape.channels)
        self.preprocess1 = _ReLUConvBN(shape.channels_prev, shape.channels)
        pairs = genotype.reduce if shape.reduction else genotype.normal
        self.sources = [source for _, source in pairs]
        self._ops = nn.ModuleList(
            _operation(name, shape.channels, 2 if shape.reduction and source < INPUTS else 1)
            for name, source in pairs
        )

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        states = [self.preprocess0(before_last), self.preprocess1(last)]
        for first in range(0, len(self._ops), KEPT):
            edges = range(first, first + KEPT)
            one, other = (self._ops[edge](states[self.sources[edge]]) for edge in edges)
            states.append(one + other)
        return torch.cat(states[INPUTS:], 1)  # (N, nodes * C, H, W)


def _operation(name: str, channels: int, stride: int) -> nn.Module:
    """One operation on `channels` channels."""
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else _FactorizedReduce(channels, channels)
    if name == "max_pool_3x3":
        return nn.Sequential(nn.MaxPool2d(3, stride, 1), _norm(channels))
    if name == "avg_pool_3x3":
        pool = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        return nn.Sequential(pool, _norm(channels))
    if name in ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"):
        return _DepthwiseConv(name, channels, stride)
    raise ConfigError(f"operation {name!r} is not one of DARTS'; only those can be exported")


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
