"""Coordinate-wise order statistics over the client axis."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metadnas_ext._native import REFERENCE
from metadnas_ext.ops import reference_aggregate


def rank_mean(x: Tensor, begin: int, end: int) -> Tensor:
    """Mean of each coordinate's values of rank `begin` to `end` - 1 (from 0) over the clients.

    Args:
        x: (G, ...) float32 or float64. NaN ranks last, as in torch.sort.
        begin, end: 0 <= begin < end <= G.

    Returns:
        (...), added up in float64; NaN where a NaN is among these ranks. It carries no gradient.

    Raises:
        RuntimeError: on wrong shapes, dtypes or ranks.
    """
    x = x.detach()
    if REFERENCE:
        return reference_aggregate.rank_mean(x, begin, end)
    result: Tensor = torch.ops.metadnas_ext.rank_mean(x, begin, end)
    return result


def median(x: Tensor) -> Tensor:
    """Coordinate-wise median over the clients (Yin et al., ICML 2018).

    Args:
        x: (G, ...) float32 or float64. NaN ranks last: fewer than half of the clients cannot make
            the result NaN.

    Returns:
        (...); for an even G the mean of the two middle values, as numpy.median (torch.median takes
        the lower one). It carries no gradient.
    """
    clients = x.shape[0] if x.dim() else 0
    return rank_mean(x, max(clients - 1, 0) // 2, clients // 2 + 1)


def trimmed_mean(x: Tensor, trim: float = 0.1) -> Tensor:
    """Coordinate-wise mean without the largest and smallest values (Yin et al., ICML 2018).

    Args:
        x: (G, ...) float32 or float64. NaN counts among the largest.
        trim: share of the clients cut off at each end, at least 0 and less than 0.5; floor(trim *
            G) clients are.

    Returns:
        (...). It carries no gradient.

    Raises:
        ValueError: on a `trim` outside its range.
    """
    if not 0 <= trim < 0.5:
        raise ValueError(f"trim is {trim}, expected at least 0 and less than 0.5")
    clients = x.shape[0] if x.dim() else 0
    cut = math.floor(trim * clients + 1e-9)  # 0.29 * 100 is a little less than 29
    return rank_mean(x, cut, clients - cut)


def _register() -> None:
    @torch.library.register_fake("metadnas_ext::rank_mean")  # type: ignore[untyped-decorator]
    def _(x: Tensor, begin: int, end: int) -> Tensor:
        return x.new_empty(x.shape[1:])


if not REFERENCE:
    _register()
