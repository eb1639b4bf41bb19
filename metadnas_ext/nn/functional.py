"""The classifier and the loss, with a client axis, in pure torch.

`counts` (G) int64 says how many of the N images count for each client; the others hold arbitrary
values and must not reach any result.
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


def check_clients(clients: int | None) -> None:
    """ValueError unless there is no client axis, or one of at least 1."""
    if clients is not None and clients < 1:
        raise ValueError(f"clients is {clients}, expected None or at least 1")


def linear(x: Tensor, weight: Tensor, bias: Tensor, counts: Tensor | None = None) -> Tensor:
    """x (G, N, C), weight (G, K, C), bias (G, K) -> (G, N, K); zeros for images that don't count.

    One product a client, on the CPU of just its images: a product rounds differently in another
    shape, and a client's result must not depend on its cohort. Elsewhere, where the counts cannot
    be read in passing, of all N, with zeros for those that do not count.
    """
    if counts is not None and not counts.is_cpu:
        used = _counting(counts, x.shape[1])[..., None]  # (G, N, 1)
        return torch.where(used, linear(torch.where(used, x, 0.0), weight, bias), 0.0)
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
    used = _counting(counts, labels.shape[1])
    # where, not a product: a padded image's loss may be anything.
    return torch.where(used, losses, 0.0).sum(1) / counts.clamp(min=1)


def correct(logits: Tensor, labels: Tensor, counts: Tensor | None = None) -> Tensor:
    """Correctly classified images of each client, int64 (G)."""
    hits = logits.argmax(-1) == labels
    if counts is not None:
        hits &= _counting(counts, labels.shape[1])
    return hits.sum(1)


def _counting(counts: Tensor, images: int) -> Tensor:
    """Which images count: bool (G, N)."""
    return torch.arange(images, device=counts.device) < counts[:, None]
