"""Pure-torch twins of the aggregation operators; weighted_mean's is in `reference`."""

from __future__ import annotations

from torch import Tensor

from metadnas_ext.ops.reference import weighted_mean


def mixtures(x: Tensor, weights: Tensor) -> Tensor:
    """x (G, ...), weights (M, G) -> (M, ...): a weighted mean for each row of weights."""
    result = x.new_empty((weights.shape[0], *x.shape[1:]))
    for row, mixture in zip(weights, result, strict=True):
        mixture.copy_(weighted_mean(x, row))
    return result


def rank_mean(x: Tensor, begin: int, end: int) -> Tensor:
    """x (G, ...) -> (...): mean of the sorted clients [begin, end), NaN sorted last."""
    if not 0 <= begin < end <= x.shape[0]:
        raise RuntimeError(
            f"rank_mean: ranks are [{begin}, {end}), expected 0 <= begin < end <= {x.shape[0]}"
        )
    return x.double().sort(0).values[begin:end].mean(0).to(x.dtype)


def gram(x: Tensor, origin: Tensor) -> Tensor:
    """x (G, ...), origin (...) -> (G, G) float64: scalar products of x - origin."""
    deviation = (x.double() - origin.double()).flatten(1)  # (G, P)
    return deviation @ deviation.T
