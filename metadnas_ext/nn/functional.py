"""Layers around the mixed operations, with a client axis and channels last, in pure torch.

Activations are (G, N, H, W, C). `counts` (G) int64 says how many of the N images count for each
client; the others hold arbitrary finite values and must not reach any statistic.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
MOMENTUM = 0.1


def check_images(x: Tensor, channels: int, clients: int | None) -> None:
    """ValueError unless x is (N, channels, H, W), or with `clients` (G, N, channels, H, W)."""
    lead = () if clients is None else (clients,)
    if x.dim() != len(lead) + 4 or x.shape[-3] != channels or x.shape[: len(lead)] != lead:
        expected = ", ".join(map(str, (*lead, "N", channels, "H", "W")))
        raise ValueError(f"x has shape {tuple(x.shape)}, expected ({expected})")


def batch_norm(z: Tensor, running: Tensor | None, counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Normalises z (G, N, H, W, C) over N, H, W; returns it and the statistics (G, 1, 2, C).

    running (G, 1, 2, C): eval mode. Statistics are mean and biased variance, not differentiable.
    """
    if running is not None:
        mean, var = (t[:, None, None, None, :] for t in running[:, 0].unbind(1))
        return (z - mean) * torch.rsqrt(var + EPS), running
    positions = z.shape[2] * z.shape[3]
    if counts is None:
        mean = z.mean((1, 2, 3), keepdim=True)  # (G, 1, 1, 1, C)
        centred = z - mean
        var = centred.square().mean((1, 2, 3), keepdim=True)
    else:
        used = (torch.arange(z.shape[1]) < counts[:, None])[:, :, None, None, None]
        total = (counts.clamp(min=1) * positions).to(z.dtype)[:, None, None, None, None]
        mean = (z * used).sum((1, 2, 3), keepdim=True) / total
        centred = (z - mean) * used
        var = centred.square().sum((1, 2, 3), keepdim=True) / total
    stats = torch.stack([mean.detach().flatten(1), var.detach().flatten(1)], 1)[:, None]
    return centred * torch.rsqrt(var + EPS), stats


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (G, N, H, W, C) * weight (G, C) + bias (G, C)."""
    return x * weight[:, None, None, None] + bias[:, None, None, None]


def pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """1x1 convolution: x (G, N, H, W, Cin), weight (G, Cout, Cin, ...) -> (G, N, H, W, Cout)."""
    rows = x.reshape(x.shape[0], -1, x.shape[-1])  # (G, N * H * W, Cin)
    product = torch.bmm(rows, weight.flatten(2).transpose(1, 2))
    return product.view(*x.shape[:-1], -1)


def conv3x3(x: Tensor, weight: Tensor) -> Tensor:
    """3x3 convolution, padding 1: x (G, N, H, W, Cin), weight (G, Cout, Cin, 3, 3)."""
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    patches = padded.unfold(2, 3, 1).unfold(3, 3, 1)  # (G, N, H, W, Cin, 3, 3)
    return pointwise(patches.flatten(4), weight)


def shifted_grids(x: Tensor) -> tuple[Tensor, Tensor]:
    """Every second pixel from (0, 0) and from (1, 1), the latter zero-padded at odd sizes."""
    height, width = x.shape[2:4]
    shifted = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))[:, :, 1::2, 1::2]
    return x[:, :, ::2, ::2], shifted


def linear(x: Tensor, weight: Tensor, bias: Tensor, counts: Tensor | None = None) -> Tensor:
    """x (G, N, C), weight (G, K, C), bias (G, K) -> (G, N, K); zeros for images that don't count.

    One product a client, of just its images: a product rounds differently in another shape, and a
    client's result must not depend on its cohort.
    """
    if counts is None:
        return torch.stack([F.linear(*client) for client in zip(x, weight, bias, strict=True)])
    images = x.shape[1]
    results = [
        F.pad(F.linear(x[g, :n], weight[g], bias[g]), (0, 0, 0, images - n))
        for g, n in enumerate(counts.tolist())
    ]
    return torch.stack(results)


def cross_entropy(logits: Tensor, labels: Tensor, counts: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of each client: logits (G, N, K), labels (G, N) -> (G)."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    losses = losses.view(labels.shape)  # (G, N)
    if counts is None:
        return losses.mean(1)
    used = torch.arange(labels.shape[1]) < counts[:, None]
    # where, not a product: a padded image's loss may be anything.
    return torch.where(used, losses, 0.0).sum(1) / counts.clamp(min=1)


def correct(logits: Tensor, labels: Tensor, counts: Tensor | None = None) -> Tensor:
    """Correctly classified images of each client, int64 (G)."""
    hits = logits.argmax(-1) == labels
    if counts is not None:
        hits &= torch.arange(labels.shape[1]) < counts[:, None]
    return hits.sum(1)
