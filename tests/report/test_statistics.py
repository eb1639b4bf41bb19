"""Figures over clients and seeds against SciPy's bootstrap, brute force and closed forms."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest

from metadnas_ext.report import statistics
from metadnas_ext.report.result import ClientResult
from metadnas_ext.report.statistics import (
    bootstrap_interval,
    differences,
    epochs_to,
    harmed_share,
    rounds_to,
    sample_std,
    stratified_mean,
)


def skewed(count: int, seed: int) -> np.ndarray:
    """Differences with a long tail on one side."""
    return np.random.default_rng(seed).exponential(0.05, count) - 0.03


@pytest.mark.parametrize("sizes", [(40,), (12,), (30, 30), (10, 25, 60)])
def test_interval_is_scipy_s(sizes: tuple[int, ...]) -> None:
    """SciPy's BCa of several samples is the bootstrap with strata: both ends, up to the noise of
    the resamples."""
    scipy_stats = pytest.importorskip("scipy.stats", reason="SciPy comes with scikit-learn")
    strata = [skewed(count, seed) for seed, count in enumerate(sizes)]

    def mean_of_means(*samples: np.ndarray, axis: int) -> np.ndarray:
        return sum(sample.mean(axis=axis) for sample in samples) / len(samples)

    truth = scipy_stats.bootstrap(
        strata,
        mean_of_means,
        n_resamples=20_000,
        method="BCa",
        rng=np.random.default_rng(1),
    ).confidence_interval
    interval = bootstrap_interval(strata, "test", resamples=20_000)
    width = truth.high - truth.low
    assert interval.low == pytest.approx(truth.low, abs=0.03 * width)
    assert interval.high == pytest.approx(truth.high, abs=0.03 * width)
    # Plain percentiles are elsewhere: the comparison above can fail.
    plain = scipy_stats.bootstrap(strata, mean_of_means, n_resamples=20_000, method="percentile",
                                  rng=np.random.default_rng(1)).confidence_interval  # fmt: skip
    assert abs(plain.high - truth.high) > 0.03 * width or len(sizes) > 1


def test_interval_by_enumerating_all_resamples() -> None:
    """Six clients: all 46,656 resamples, with the definitions of Efron (1987) written out."""
    sample = np.array([-0.02, 0.0, 0.01, 0.03, 0.04, 0.19])
    means = np.array([np.mean(r) for r in itertools.product(sample, repeat=6)])
    center, normal = sample.mean(), NormalDist()
    below = (np.mean(means < center - 1e-12) + np.mean(means <= center + 1e-12)) / 2
    shift = normal.inv_cdf(float(below))
    left_out = np.array([np.delete(sample, i).mean() for i in range(6)])
    pull = left_out.mean() - left_out
    acceleration = (pull**3).sum() / (6 * (pull**2).sum() ** 1.5)
    ends = []
    for tail in (0.025, 0.975):
        z = shift + normal.inv_cdf(tail)
        ends.append(np.quantile(means, normal.cdf(shift + z / (1 - acceleration * z))))
    interval = bootstrap_interval([sample], "enumerated", resamples=50_000)
    assert interval == pytest.approx(ends, abs=0.004)
    assert interval.high - center > 1.5 * (center - interval.low)  # skewed as the sample is


def test_interval_of_many_clients_is_the_normal_one() -> None:
    sample = np.random.default_rng(0).normal(0.02, 0.1, 2000)
    half = 1.96 * sample.std() / math.sqrt(len(sample))
    interval = bootstrap_interval([sample], "many")
    assert interval.low == pytest.approx(sample.mean() - half, abs=0.05 * half)
    assert interval.high == pytest.approx(sample.mean() + half, abs=0.05 * half)


def test_seeds_are_strata() -> None:
    """Two seeds far apart whose clients agree: nothing is uncertain about these two seeds."""
    assert bootstrap_interval([np.full(9, 0.1), np.full(9, 0.5)], "strata") == (0.3, 0.3)
    # Every seed counts the same, however many clients it has.
    strata = [np.array([0.0, 0.2]), np.array([0.6] * 8)]
    assert stratified_mean(strata) == pytest.approx(0.35)
    interval = bootstrap_interval(strata, "strata")
    assert interval == pytest.approx((0.3, 0.4))  # the first seed's mean is 0, 0.1 or 0.2


def test_interval_depends_on_its_key_alone() -> None:
    sample = skewed(30, 0)
    one = bootstrap_interval([sample], "meta_dnas", "fedavg")
    np.random.default_rng(5).normal(size=100)
    assert bootstrap_interval([sample.copy()], "meta_dnas", "fedavg") == one
    assert bootstrap_interval([sample], "meta_dnas", "darts") != one


def test_blocks_of_bounded_memory_change_nothing_but_the_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sample = skewed(100, 1)
    whole = bootstrap_interval([sample], "blocks")
    monkeypatch.setattr(statistics, "_BLOCK", 1000)
    assert bootstrap_interval([sample], "blocks") == whole


@pytest.mark.parametrize("strata", [[], [np.array([])], [np.array([0.1])], [np.array([0.1])] * 2])
def test_too_few_clients_for_an_interval(strata: list[np.ndarray]) -> None:
    assert all(math.isnan(end) for end in bootstrap_interval(strata, "few"))


def test_equal_differences() -> None:
    assert bootstrap_interval([np.full(5, 0.25)], "equal") == (0.25, 0.25)


def test_differences_are_of_clients_with_both() -> None:
    one, other = {3: 0.5, 1: 0.75, 2: 0.25}, {1: 0.5, 3: 1.0, 7: 0.0}
    assert differences(one, other).tolist() == [0.25, -0.5]


def test_harmed_share() -> None:
    # 1 of 4 and 1 of 2 clients: equal accuracies harm nobody; seeds count the same.
    strata = [np.array([0.1, 0.0, -0.1, 0.2]), np.array([-0.5, 0.5]), np.array([])]
    assert harmed_share(strata) == pytest.approx((0.25 + 0.5) / 2)
    assert math.isnan(harmed_share([]))


@pytest.mark.parametrize(
    ("accuracies", "target", "rounds"),
    [
        ([0.2, 0.5, 0.4, 0.6], 0.5, 2),
        ([0.2, 0.5, 0.4, 0.6], 0.2, 1),
        ([0.2, math.nan, 0.6], 0.55, 3),
        ([0.2, 0.5], 0.51, math.nan),
        ([], 0.5, math.nan),
        ([0.5], math.nan, math.nan),
    ],
)
def test_rounds_to(accuracies: list[float], target: float, rounds: float) -> None:
    assert rounds_to(accuracies, target) == pytest.approx(rounds, nan_ok=True)


def test_sample_std() -> None:
    assert sample_std([0.5, math.nan, 0.7]) == pytest.approx(math.sqrt(0.02))
    assert math.isnan(sample_std([0.5]))


def adapted(make, client: int, train_size: int, curve: dict[str, float] | None) -> ClientResult:
    return ClientResult.from_json(make.result(client, train_size=train_size, adaptation=curve))


def test_epochs_to(make) -> None:
    """100 and 200 images in batches of 50: 2 and 4 steps an epoch."""
    results = [
        adapted(make, 0, 100, {"0": 0.1, "4": 0.5, "10": 0.9}),
        adapted(make, 1, 200, {"0": 0.1, "4": 0.7, "10": 0.8}),
        adapted(make, 2, 999, None),
    ]
    # The mean curve is 0.1, 0.6, 0.85; client 2 has no curve, client 9 no result.
    targets = {0: 0.5, 1: 0.7, 2: 1.0, 9: 1.0}
    assert epochs_to(results, targets, 50) == pytest.approx((4 / 2 + 4 / 4) / 2)
    assert epochs_to(results, {0: 0.9, 1: 0.8}, 50) == pytest.approx((10 / 2 + 10 / 4) / 2)
    assert epochs_to(results, {1: 0.75}, 50) == pytest.approx(10 / 4)
    assert epochs_to(results, {0: 0.0}, 50) == 0
    assert math.isnan(epochs_to(results, {0: 1.0, 1: 0.8}, 50))
    assert math.isnan(epochs_to(results, {2: 0.1}, 50))


def test_nobody_adapts_for_longer_than_its_last_step(make) -> None:
    """1 and 4 steps an epoch, 3 epochs each: at step 10 the first has long had its 3."""
    curve = {"0": 0.1, "10": 0.9}
    results = [
        ClientResult.from_json(make.result(0, train_size=40, steps=3, adaptation=curve)),
        ClientResult.from_json(make.result(1, train_size=200, steps=12, adaptation=curve)),
    ]
    assert epochs_to(results, {0: 0.5, 1: 0.5}, 50) == pytest.approx((3 + 10 / 4) / 2)


def test_who_matches_at_the_end_alone(make) -> None:
    """The curve stops at step 1, training goes on: 6 and 12 steps, 2 and 4 an epoch."""
    curve = {"0": 0.1, "1": 0.2}
    results = [
        ClientResult.from_json(make.result(0, 0.6, train_size=100, steps=6, adaptation=curve)),
        ClientResult.from_json(make.result(1, 0.8, train_size=200, steps=12, adaptation=curve)),
    ]
    assert epochs_to(results, {0: 0.6, 1: 0.8}, 50) == pytest.approx(3)
    assert epochs_to(results, {0: 0.7, 1: 0.7}, 50) == pytest.approx(3)
    assert epochs_to(results, {0: 0.2, 1: 0.2}, 50) == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert math.isnan(epochs_to(results, {0: 0.61, 1: 0.8}, 50))
    unknown = [ClientResult.from_json(make.result(0, 0.6, steps=None, adaptation=curve))]
    assert math.isnan(epochs_to(unknown, {0: 0.5}, 50))
