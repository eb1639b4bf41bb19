"""How distance-based rules weigh clients, from the Gram matrix of their deviations.

Every rule needs two passes over the clients' values, one for the Gram matrix and one for the
combination, whatever the number of its iterations. All clients are finite here; the arithmetic is
float64 on (G, G), in operations whose order does not depend on the number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor


def squared_distances(products: Tensor) -> Tensor:
    """Squared Euclidean distances between clients.

    Args:
        products: (G, G), from `ops.gram`. Distances below about 1e-8 of the clients' distance from
            its origin are rounding.

    Returns:
        (G, G), at least 0, with a diagonal of exactly 0.
    """
    norms = products.diagonal()
    return (norms[:, None] + norms[None, :] - 2 * products).clamp_min(0)


def krum_scores(products: Tensor, byzantine: int) -> Tensor:
    """Krum's score: the sum of squared distances to the nearest clients (Blanchard et al., NeurIPS
    2017).

    Args:
        products: (G, G), from `ops.gram`.
        byzantine: how many clients f may be arbitrary. The G - f - 2 nearest others count, at least
            one where there are others.

    Returns:
        (G); the client with the least score is Krum's choice.
    """
    clients = products.shape[0]
    nearest = min(max(clients - byzantine - 2, 1), clients - 1)
    distances = squared_distances(products)
    distances.fill_diagonal_(torch.inf)  # not a neighbour of itself
    return distances.sort(1).values[:, :nearest].sum(1)


def geometric_median_weights(
    products: Tensor,
    weights: Tensor,
    smoothing: float = 1e-6,
    iterations: int = 1000,
    tolerance: float = 1e-8,
) -> Tensor:
    """Weights whose mean of the clients is their geometric median: the point of the least weighted
    sum of distances, by the smoothed Weiszfeld iteration (Pillutla et al., IEEE TSP 2022).

    Args:
        products: (G, G), from `ops.gram`.
        weights: (G) more than 0: of the clients' distances in the sum.
        smoothing: distances count as at least this, in the clients' unit.
        iterations: at most this many.
        tolerance: ends when the point moves by less than this share of the harmonic mean of
            the distances.

    Returns:
        (G), sums to 1.
    """
    share = weights / weights.sum()
    norms = products.diagonal()
    current = share
    for _ in range(iterations):
        # |x_i - z|^2 for z = sum_j current_j x_j, all of it from scalar products.
        towards = (products * current).sum(1)  # (G)
        squares = norms - 2 * towards + (current * towards).sum()
        pull = share / squares.clamp_min(0).sqrt().clamp_min(smoothing)
        following = pull / pull.sum()
        step = following - current
        moved = (step * (products * step).sum(1)).sum().clamp_min(0).sqrt()
        current = following
        # 1 / sum: the harmonic mean, which a few distant clients cannot raise.
        if moved <= tolerance / pull.sum():
            break
    return current


def similarity_weights(products: Tensor, weights: Tensor, temperature: float = 0.2) -> Tensor:
    """Each client's own mixture of the clients, by the cosine of their deviations from the origin
    (HeurFedAMP's weights; Huang et al., AAAI 2021).

    Args:
        products: (G, G), from `ops.gram`.
        weights: (G) more than 0: multiply what a client gives to every mixture.
        temperature: more than 0. Small: each client keeps to those like itself. Large: the weighted
            mean for everyone.

    Returns:
        (G, G), rows sum to 1: row i is proportional to weights_j * exp(cos_ij / temperature). A
        client at the origin is like itself and unlike everyone else (cosine 0).
    """
    lengths = products.diagonal().sqrt()
    scale = torch.where(lengths > 0, 1 / lengths, 0)
    cosine = products * scale[:, None] * scale[None, :]
    cosine.fill_diagonal_(1)
    return torch.softmax(cosine.clamp(-1, 1) / temperature + weights.log(), 1)
