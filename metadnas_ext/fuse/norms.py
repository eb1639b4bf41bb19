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


def mode_of(norm: nn.Module) -> NormMode | None:
    """How the batch norm works now; None if it is not (or no longer) an ordinary one."""
    if type(norm).forward is not nn.BatchNorm2d.forward:
        return None
    assert isinstance(norm, nn.BatchNorm2d)
    batch = norm.training or norm.running_mean is None
    return NormMode(batch, norm.weight is not None, norm.eps)


def running(norms: Sequence[nn.BatchNorm2d]) -> Tensor:
    """Running statistics, (1, S, 2, C)."""
    tensors = [t for n in norms for t in (n.running_mean, n.running_var) if t is not None]
    return torch.stack(tensors).view(1, len(norms), 2, -1)


@torch.no_grad()
def update(norms: Sequence[nn.BatchNorm2d], stats: Tensor, values: int) -> None:
    """The step that batch norms take in training mode.

    stats (S, 2, C): mean and biased variance over `values` values of each channel.
    """
    kept = [
        (norm, own)
        for norm, own in zip(norms, stats.unbind(), strict=True)
        if norm.training and norm.track_running_stats and norm.running_mean is not None
    ]
    counters = [n.num_batches_tracked for n, _ in kept if n.num_batches_tracked is not None]
    if counters:
        torch._foreach_add_(counters, 1)
    steps: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
    for norm, own in kept:
        buffers, new = steps.setdefault(_factor(norm), ([], []))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        buffers += [norm.running_mean, norm.running_var]
        unbiased = own[1] * (values / (values - 1))
        new += [own[0].to(norm.running_mean.dtype), unbiased.to(norm.running_var.dtype)]
    for factor, (buffers, new) in steps.items():
        torch._foreach_lerp_(buffers, new, factor)


def _factor(norm: nn.BatchNorm2d) -> float:
    """Weight of the newest batch; without momentum, that of a plain mean over all."""
    if norm.momentum is None:
        return 1.0 / float(norm.num_batches_tracked)  # type: ignore[arg-type]
    return norm.momentum
