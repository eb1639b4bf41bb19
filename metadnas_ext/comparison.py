"""Clients weighed by comparing them whole: over several tensors (G, ...) that together are one
vector a client.

Clients with a NaN or infinity are left out of everything: the others' weights are, to the bit, what
they would be without them.

Only the Gram matrix is made on the tensors' device. What follows, few numbers and many decisions,
is on the CPU, as are all weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metadnas_ext import ops
from metadnas_ext.placement import to_device


def multi_krum(compared: Sequence[Tensor], byzantine: int | None, select: int | None) -> Tensor:
    """Weights (G): 1 for the `select` clients of the least Krum score, 0 for the others.

    Args:
        compared: tensors (G, ...), float32 or float64.
        byzantine: 0 to (G - 3) / 2; None: the most that the number of finite clients allows.
        select: 1 to G, fewer where fewer are finite; None: all but `byzantine`.

    Raises:
        ValueError: on an argument out of its range, or no finite client.
    """
    clients = compared[0].shape[0]
    most = _tolerable(clients)
    if byzantine is not None and not 0 <= byzantine <= most:
        raise ValueError(
            f"byzantine is {byzantine}, expected 0 to {most} for {clients} clients "
            "(2 * byzantine + 3 clients at least)"
        )
    if select is not None and not 1 <= select <= clients:
        raise ValueError(f"select is {select}, expected 1 to {clients}, the number of clients")
    kept, products = _gram(compared, torch.ones(clients, dtype=torch.bool))
    if byzantine is None:
        byzantine = _tolerable(len(kept))
    if select is None:
        select = max(len(kept) - byzantine, 1)
    scores = ops.krum_scores(products, byzantine)
    chosen = kept[scores.argsort(stable=True)[:select]]
    return torch.zeros(clients, dtype=torch.float64).index_fill(0, chosen, 1)


def geometric_median(
    compared: Sequence[Tensor],
    weights: Tensor,
    smoothing: float,
    iterations: int,
    tolerance: float,
) -> Tensor:
    """Weights (G) whose mean of the clients is their geometric median.

    Args:
        compared: tensors (G, ...), float32 or float64.
        weights: (G) float64, at least 0; clients of weight 0 are left out.
        smoothing, iterations, tolerance: see `ops.geometric_median_weights`.

    Raises:
        ValueError: on an argument out of its range, or no finite client of a weight above 0.
    """
    if not 0 < smoothing < torch.inf:
        raise ValueError(f"smoothing is {smoothing}, expected more than 0")
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}, expected at least 1")
    if not 0 <= tolerance < torch.inf:
        raise ValueError(f"tolerance is {tolerance}, expected at least 0")
    counting = weights > 0
    kept, products = _gram([_rows(x, counting) for x in compared], counting[counting])
    kept = counting.nonzero().flatten()[kept]
    found = ops.geometric_median_weights(products, weights[kept], smoothing, iterations, tolerance)
    return torch.zeros_like(weights).index_copy(0, kept, found)


def similarity(compared: Sequence[Tensor], weights: Tensor, temperature: float) -> Tensor:
    """Weights (G, G), rows sum to 1: each client's own mixture of the clients like it.

    Args:
        compared: tensors (G, ...), float32 or float64.
        weights: (G) float64, at least 0. A client of weight 0 receives but does not give; one that
            is not finite receives the weighted mean of the others.
        temperature: more than 0, see `ops.similarity_weights`.

    Raises:
        ValueError: on an argument out of its range, or no finite client of a weight above 0.
    """
    if not 0 < temperature < torch.inf:
        raise ValueError(f"temperature is {temperature}, expected more than 0")
    kept, products = _gram(compared, weights > 0)
    giving = torch.zeros_like(weights).index_copy(0, kept, weights[kept])  # (G)
    shares = (giving / giving.sum()).repeat(len(weights), 1)  # (G, G)
    found = ops.similarity_weights(products, weights[kept], temperature)
    shares[kept] = torch.zeros(len(kept), len(weights), dtype=torch.float64).index_copy(
        1, kept, found
    )
    return shares


def _tolerable(clients: int) -> int:
    """The most arbitrary clients that Krum's guarantee allows."""
    return max((clients - 3) // 2, 0)


def _gram(compared: Sequence[Tensor], counting: Tensor) -> tuple[Tensor, Tensor]:
    """The indices (K) of the finite clients, and their scalar products (K, K).

    They are taken about the coordinate median of those that count: unlike the mean, it stays among
    the many whatever a few send, so the distances of the many keep their digits. A client is not
    finite, too, where its products overflow float64.

    Args:
        compared: tensors (G, ...).
        counting: (G), which clients are of a weight above 0.
    """
    kept = torch.ones_like(counting)
    while (kept & counting).any():
        size = int(kept.sum())
        products = torch.zeros(size, size, dtype=torch.float64)
        for x in compared:
            # Where most clients are not finite, neither is their median.
            origin = ops.median(_rows(x, kept & counting)).nan_to_num(0, 0, 0)
            products += ops.gram(_rows(x, kept), origin).cpu()
        finite = products.diagonal().isfinite()
        if finite.all():
            return kept.nonzero().flatten(), products
        kept[kept.clone()] = finite  # once more, as if the others had sent nothing
    raise ValueError("updates have no finite client of a weight above 0")


def _rows(x: Tensor, mask: Tensor) -> Tensor:
    """The rows of x that `mask`, on the CPU, has."""
    return x if bool(mask.all()) else x[to_device(mask.nonzero().flatten(), x.device)]
