"""Candidates that a user might add, registered from outside the package."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metadnas_ext


class SqueezeExcite(nn.Module):
    """A bottleneck with a bias, batch norms of two widths and resolutions, a gate and a constant.

    All that a template has to find: parameters that are not of convolutions, products by hand.
    """

    def __init__(self, channels: int, stride: int, affine: bool) -> None:
        super().__init__()
        half = max(channels // 2, 1)
        self.narrow = nn.Conv2d(channels, half, 1)
        self.norm = nn.BatchNorm2d(half, affine=True)
        self.spatial = nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False)
        self.wide = nn.Conv2d(half, channels, 1, bias=False)
        self.last = nn.BatchNorm2d(channels, affine=affine)
        self.gate = nn.Parameter(0.3 * torch.randn(channels, channels))
        self.register_buffer("halves", torch.full((channels,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.spatial(F.silu(self.norm(self.narrow(x)))))
        weights = torch.sigmoid(F.prelu(x.mean((2, 3)) @ self.gate, self.halves))
        return self.last(x * weights[:, :, None, None])


def grouped(channels: int, stride: int, affine: bool) -> nn.Module:
    """Entry of a DARTS-style dictionary of operations."""
    return nn.Sequential(
        nn.PReLU(channels),
        nn.Conv2d(channels, channels, (1, 3), (1, stride), (0, 1), groups=2, bias=False),
        nn.Conv2d(channels, channels, (3, 1), (stride, 1), (1, 0), bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    )


def norm_only(channels: int, stride: int, affine: bool) -> nn.Module:
    """A module that is a batch norm itself, after pooling where it strides."""
    if stride == 1:
        return nn.BatchNorm2d(channels, affine=affine)
    return nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.BatchNorm2d(channels, affine=affine))


FACTORIES = {"squeeze_excite": SqueezeExcite, "conv_1x3_3x1": grouped, "norm_only": norm_only}

for name, factory in FACTORIES.items():
    metadnas_ext.register_primitive(name, factory)
