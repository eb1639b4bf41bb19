"""Figures over clients and seeds, as plain functions of numbers.

Clients of one seed share a partition, a start and a server: they are one federation. So every
figure is one federation's, averaged over seeds, and the bootstrap draws clients within each seed
(seeds are its strata). Pooling all clients would take a seed's luck for clients' variety.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metadnas_ext.report.result import ClientResult
from metadnas_ext.seeding import derived_seed

Array = NDArray[np.float64]

RESAMPLES = 10_000
CONFIDENCE = 0.95
_BLOCK = 1 << 20  # numbers drawn at a time


class Interval(NamedTuple):
    """Both ends; NaN if there is nothing to estimate them from."""

    low: float
    high: float


UNKNOWN = Interval(math.nan, math.nan)


def summary(results: Sequence[ClientResult]) -> dict[str, float]:
    """Figures over the clients of one run; accuracies in 0..1, NaN where no client counts.

    `mean` and `std` (population), `worst_decile` (mean of the lowest 10 % of clients, rounded up to
    whole clients), `seen_mean`, `unseen_mean`, `mean_cost` (NaN if clients differ in unit),
    `violations` (clients over budget), `clients`, and `missing`: clients without a finite test
    accuracy, which the other figures leave out.
    """
    measured = [r for r in results if math.isfinite(r.test_accuracy)]
    accuracy = sorted(r.test_accuracy for r in measured)
    one_unit = len({r.unit for r in results}) == 1
    return {
        "clients": len(results),
        "missing": len(results) - len(measured),
        "mean": mean(accuracy),
        "std": float(np.std(accuracy)) if accuracy else math.nan,
        "worst_decile": mean(accuracy[: math.ceil(len(accuracy) / 10)]),
        "seen_mean": mean([r.test_accuracy for r in measured if r.seen]),
        "unseen_mean": mean([r.test_accuracy for r in measured if not r.seen]),
        "mean_cost": mean([r.cost for r in results if math.isfinite(r.cost)] if one_unit else []),
        "violations": sum(r.over_budget for r in results),
    }


def mean(values: Sequence[float]) -> float:
    """The mean; NaN of nothing."""
    return float(np.mean(values)) if len(values) else math.nan


def mean_of_finite(values: Sequence[float]) -> float:
    """The mean of the values that are finite; NaN if none is."""
    return mean([value for value in values if math.isfinite(value)])


def sample_std(values: Sequence[float]) -> float:
    """Standard deviation with n - 1; NaN of fewer than two finite values."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan


def differences(one: Mapping[int, float], other: Mapping[int, float]) -> Array:
    """one - other for the clients with both, by client."""
    return np.array([one[client] - other[client] for client in sorted(one) if client in other])


def harmed_share(strata: Sequence[Array]) -> float:
    """Share of clients whose difference to a baseline is negative, averaged over seeds."""
    return mean([float((d < 0).mean()) for d in strata if len(d)])


def stratified_mean(strata: Sequence[Array]) -> float:
    """Mean over seeds of the mean over clients."""
    return mean([float(d.mean()) for d in strata if len(d)])


def bootstrap_interval(
    strata: Sequence[Array],
    *key: str | int,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Interval:
    """BCa interval of `stratified_mean` (Efron, "Better Bootstrap Confidence Intervals", 1987).

    Bias-corrected and accelerated, because differences over clients are few and skewed, where
    plain percentiles cover too little.

    Args:
        strata: for each seed one difference a client; clients are drawn again within their seed.
        key: what the interval is of; it decides the random draws, whatever else is compared.
    """
    samples = [np.asarray(d, dtype=np.float64) for d in strata if len(d)]
    if sum(len(d) for d in samples) < 2 or max(len(d) for d in samples) < 2:
        return UNKNOWN  # one client says nothing about others
    center = stratified_mean(samples)
    influence = [(d - d.mean()) / len(d) for d in samples]  # of the jackknife, times a constant
    spread = sum(float((u * u).sum()) for u in influence)
    if spread == 0:
        return Interval(center, center)
    acceleration = sum(float((u**3).sum()) for u in influence) / (6 * spread**1.5)
    rng = np.random.default_rng(derived_seed(0, "bootstrap", *key))
    means = np.mean([_resampled(d, resamples, rng) for d in samples], axis=0)  # (resamples)
    below = (float((means < center).mean()) + float((means <= center).mean())) / 2
    normal = NormalDist()
    shift = normal.inv_cdf(min(max(below, 0.5 / resamples), 1 - 0.5 / resamples))
    ends = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = shift + normal.inv_cdf(tail)
        ends.append(normal.cdf(shift + z / (1 - acceleration * z)))
    low, high = np.quantile(means, ends)
    return Interval(float(low), float(high))


def rounds_to(accuracies: Sequence[float], target: float) -> float:
    """How many rounds it takes until one reaches `target`; NaN if none does."""
    return next((n for n, a in enumerate(accuracies, 1) if a >= target), math.nan)


def epochs_to(
    results: Sequence[ClientResult], targets: Mapping[int, float], batch_size: int
) -> float:
    """Local epochs of adaptation until the clients' mean accuracy reaches that of `targets`.

    Of the clients that have an adaptation curve and a target, at the numbers of steps measured and
    at the end; the mean over clients of the epochs so many steps are, or all of its steps of a
    client that has fewer. NaN without curves or if the end is still below.
    """
    curves = [(r, r.adaptation) for r in results if r.adaptation and r.client in targets]
    if not curves:
        return math.nan
    wanted = mean([targets[r.client] for r, _ in curves]) - 1e-12
    shared = set.intersection(*({int(step) for step in curve} for _, curve in curves))
    for step in sorted(shared):
        if mean([curve[str(step)] for _, curve in curves]) >= wanted:
            return mean([_epochs_of(step, r, batch_size) for r, _ in curves])
    if mean([r.test_accuracy for r, _ in curves]) >= wanted:
        return mean([_epochs_of(math.inf, r, batch_size) for r, _ in curves])
    return math.nan


def _epochs_of(step: float, result: ClientResult, batch_size: int) -> float:
    """Local epochs in which the client has taken so many steps, or all; NaN if nobody knows."""
    taken = min(step, math.inf if result.steps is None else result.steps)
    epochs = taken / math.ceil(max(result.train_size, 1) / batch_size)
    return epochs if math.isfinite(epochs) else math.nan


def _resampled(sample: Array, resamples: int, rng: np.random.Generator) -> Array:
    """Means of `resamples` samples drawn with replacement, in blocks of bounded memory."""
    count = len(sample)
    rows = max(1, _BLOCK // count)
    parts = [
        sample[rng.integers(count, size=(min(rows, resamples - start), count))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(parts)
