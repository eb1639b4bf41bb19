"""NAS-Bench-201's layers that have no kernel, as ordinary modules with the public names.

Dong and Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search" (ICLR
2020). Odd sizes give ceil(H/2): the public residual block fails on them.
"""

from __future__ import annotations

from torch import Tensor, nn


class ReLUConvBN(nn.Module):
    """ReLU, k x k convolution without bias, batch norm."""

    def __init__(
        self, channels_in: int, channels: int, kernel: int, stride: int, affine: bool
    ) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class ResidualReduction(nn.Module):
    """The fixed block between stages: two 3x3 ReLUConvBN, beside pooling and a 1x1 convolution."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv_a = ReLUConvBN(channels_in, channels, 3, 2, True)
        self.conv_b = ReLUConvBN(channels, channels, 3, 1, True)
        self.downsample = nn.Sequential(
            nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(channels_in, channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.downsample(x) + self.conv_b(self.conv_a(x))
        return out


def relu_conv_bn(kernel: int, channels: int, stride: int, affine: bool) -> nn.Module:
    """The candidates nor_conv_1x1 and nor_conv_3x3."""
    return ReLUConvBN(channels, channels, kernel, stride, affine)


def avg_pool(channels: int, stride: int, affine: bool) -> nn.Module:
    """The candidate avg_pool_3x3."""
    return nn.AvgPool2d(3, stride, 1, count_include_pad=False)


def norm_relu(channels: int) -> nn.Module:
    """What stands before the global pooling."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
