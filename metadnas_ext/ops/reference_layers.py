"""Pure-torch twins of the operators around the mixed operation; see `reference`.

Written for clarity, one client at a time. Layers are differentiable any number of times; the
optimisers' steps work in place.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    relu: bool,
    affine: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """ReLU (or not), 1x1 convolution (stride 2: factorized reduce), batch norm, for each client.

    x (G, N, H, W, Cin), params (G, P), running (G, 1, 2, C) or None in training mode, counts (G)
    images that count. Returns out (G, N, H', W', C) and statistics (G, 1, 2, C): mean and biased
    variance.
    """
    outs, stats = [], []
    images, channels_in = x.shape[1], x.shape[-1]
    for g in range(x.shape[0]):
        used = images if counts is None else int(counts[g])
        weight = params[g, : channels * channels_in].view(channels, channels_in, 1, 1)
        image = x[g, :used].permute(0, 3, 1, 2)  # (n, Cin, H, W)
        z = _convolution(F.relu(image) if relu else image, weight, stride)  # (n, C, H', W')
        mean, var = _statistics(z) if running is None else running[g, 0].unbind()
        z = (z - mean[:, None, None]) * torch.rsqrt(var + eps)[:, None, None]
        if affine:
            gamma, beta = params[g, channels * channels_in :].view(2, channels, 1, 1)
            z = z * gamma + beta
        outs.append(F.pad(z, (0, 0, 0, 0, 0, 0, 0, images - used)).permute(0, 2, 3, 1))
        stats.append(torch.stack([mean, var])[None])
    return torch.stack(outs), torch.stack(stats)


def adam_rows_(
    rows: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    steps: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    clip: float,
) -> None:
    """Adam on the first k rows: rows and moments (G, ...), grad (k, ...), steps (G)."""
    for r in range(grad.shape[0]):
        steps[r] += 1
        t = float(steps[r])
        g = grad[r] * _clip_scale(grad[r], clip) + weight_decay * rows[r]
        mean[r].lerp_(g, 1 - beta1)
        square[r].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        size = (square[r] / (1 - beta2**t)).sqrt_().add_(eps)
        rows[r].addcdiv_(mean[r], size, value=-lr / (1 - beta1**t))


def sgd_rows_(
    rows: Tensor,
    grad: Tensor,
    velocity: Tensor,
    rates: Sequence[float],
    momentum: float,
    weight_decay: float,
    clip: float,
) -> None:
    """SGD on the first k rows: rows and velocity (G, ...), grad (k, ...), k rates."""
    for r, rate in enumerate(rates):
        g = grad[r] * _clip_scale(grad[r], clip) + weight_decay * rows[r]
        rows[r].sub_(velocity[r].mul_(momentum).add_(g), alpha=rate)


def _clip_scale(grad: Tensor, limit: float) -> float:
    """The factor that brings grad to a norm of at most `limit`; 0: no limit."""
    if limit <= 0:
        return 1.0
    norm = torch.linalg.vector_norm(grad, dtype=torch.float64)
    return float((limit / (norm + 1e-6)).clamp(max=1.0))


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
