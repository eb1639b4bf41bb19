"""A user's batch norms, as the kernels' operators take and return their statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class NormMode(NamedTuple):
    """What batch norms that run in one call of an operator have in common."""

    batch_statistics: bool
    affine: bool
    eps: float


def mode_of(norm: nn.BatchNorm2d) -> NormMode:
    """How the batch norm works now."""
    batch = norm.training or norm.running_mean is None
    return NormMode(batch, norm.weight is not None, norm.eps)


def running(norms: Sequence[nn.BatchNorm2d]) -> Tensor:
    """Running statistics, (1, S, 2, C)."""
    return torch.stack([t for norm in norms for t in _buffers(norm)]).view(1, len(norms), 2, -1)


@torch.no_grad()
def update(norms: Sequence[nn.BatchNorm2d], stats: Tensor, values: int) -> None:
    """The step that batch norms take in training mode.

    stats (S, 2, C): mean and biased variance over `values` values of each channel.
    """
    counters = []
    steps: dict[float, list[int]] = {}
    for slot, norm in enumerate(norms):
        if norm.training and norm.track_running_stats and norm.running_mean is not None:
            if norm.num_batches_tracked is not None:
                counters.append(norm.num_batches_tracked)
            steps.setdefault(_factor(norm), []).append(slot)
    if counters:
        torch._foreach_add_(counters, 1)
    if not steps:
        return
    means, variances = stats.unbind(1)
    unbiased = torch.stack([means, variances * (values / (values - 1))], 1)
    rows = unbiased.flatten(0, 1).unbind()  # mean, variance, mean, ...
    for factor, slots in steps.items():
        buffers = [t for slot in slots for t in _buffers(norms[slot])]
        new = [row for slot in slots for row in rows[2 * slot : 2 * slot + 2]]
        if buffers[0].dtype != stats.dtype:
            new = [row.to(buffers[0].dtype) for row in new]
        torch._foreach_lerp_(buffers, new, factor)


def _buffers(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def _factor(norm: nn.BatchNorm2d) -> float:
    """Weight of the batch at hand; without momentum, that of a plain mean over all."""
    if norm.momentum is None:
        return 1.0 / (float(norm.num_batches_tracked) + 1.0)  # type: ignore[arg-type]
    return norm.momentum
