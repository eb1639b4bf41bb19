"""Pure-torch twins of the operators around the mixed operation; see `reference`.

Written for clarity, one client at a time. What is a function is differentiable any number of times.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def relu_conv_bn(
    x: Tensor,
    params: Tensor,
    running: Tensor | None,
    counts: Tensor | None,
    channels: int,
    stride: int,
    affine: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """ReLU, 1x1 convolution (stride 2: factorized reduce), batch norm, for each client.

    x (G, N, H, W, Cin), params (G, P), running (G, 1, 2, C) or None in training mode, counts (G)
    images that count. Returns out (G, N, H', W', C) and statistics (G, 1, 2, C): mean and biased
    variance.
    """
    outs, stats = [], []
    images, channels_in = x.shape[1], x.shape[-1]
    for g in range(x.shape[0]):
        used = images if counts is None else int(counts[g])
        weight = params[g, : channels * channels_in].view(channels, channels_in, 1, 1)
        z = _convolution(F.relu(x[g, :used].permute(0, 3, 1, 2)), weight, stride)  # (n, C, H', W')
        mean, var = _statistics(z) if running is None else running[g, 0].unbind()
        z = (z - mean[:, None, None]) * torch.rsqrt(var + eps)[:, None, None]
        if affine:
            gamma, beta = params[g, channels * channels_in :].view(2, channels, 1, 1)
            z = z * gamma + beta
        outs.append(F.pad(z, (0, 0, 0, 0, 0, 0, 0, images - used)).permute(0, 2, 3, 1))
        stats.append(torch.stack([mean, var])[None])
    return torch.stack(outs), torch.stack(stats)


def _convolution(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """x (n, Cin, H, W), weight (C, Cin, 1, 1) -> (n, C, H', W')."""
    if stride == 1:
        return F.conv2d(x, weight)
    first, second = weight.chunk(2)
    # Zeros behind an odd size give the shifted grid as many pixels as the other.
    shifted = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))[:, :, 1:, 1:]
    return torch.cat([F.conv2d(x, first, stride=2), F.conv2d(shifted, second, stride=2)], 1)


def _statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C) of z (n, C, H, W); zeros without images."""
    if z.shape[0] == 0:
        return z.new_zeros(z.shape[1]), z.new_zeros(z.shape[1])
    mean = z.mean((0, 2, 3))
    return mean, (z - mean[:, None, None]).square().mean((0, 2, 3))
