import time

import numpy as np
import pytest
import torch

from metadnas_ext.data import ClientSplit, partition, split_clients
from metadnas_ext.data.partition import stratified_order
from metadnas_ext.errors import ConfigError, DataError


def balanced(classes=10, per_class=600, seed=0):
    labels = np.repeat(np.arange(classes), per_class)
    return np.random.default_rng(seed).permutation(labels)


def assert_disjoint_and_sorted(parts):
    together = np.concatenate(parts)
    assert together.dtype == np.int64
    assert len(np.unique(together)) == len(together)
    assert all(np.all(np.diff(part) > 0) for part in parts)


def label_entropy(parts, labels):
    """Mean entropy in nats of the clients' label distributions."""
    entropies = []
    for part in parts:
        shares = np.bincount(labels[part]) / len(part)
        shares = shares[shares > 0]
        entropies.append(-(shares * np.log(shares)).sum())
    return np.mean(entropies)


@pytest.mark.parametrize("case", range(120))
def test_fuzz_every_sample_has_exactly_one_client(case):
    rng = np.random.default_rng(case)
    clients = int(rng.integers(1, 12))
    min_size = int(rng.integers(1, 5))
    samples = int(clients * min_size * rng.integers(2, 20))
    # Gaps, negative numbers and classes of very unequal size.
    names = rng.choice(np.arange(-5, 30), size=rng.integers(1, 8), replace=False)
    labels = rng.choice(names, size=samples, p=rng.dirichlet(np.full(len(names), 0.7)))
    scheme = ("dirichlet", "pathological", "iid")[case % 3]
    per_client = int(rng.integers(1, 4))
    arguments = {
        "scheme": scheme,
        "dirichlet": float(10 ** rng.uniform(-1, 2)),
        "classes_per_client": per_client,
        "min_size": min_size,
        "seed": case,
    }
    try:
        parts = partition(labels, clients, **arguments)
    except DataError as error:
        # A random tiny problem may be infeasible, but only where chance sets the sizes.
        if scheme == "iid" or f"min_size {min_size}" not in str(error):
            raise
        return
    assert len(parts) == clients
    assert min(map(len, parts)) >= min_size
    assert_disjoint_and_sorted(parts)
    covered = np.concatenate(parts)
    if scheme == "pathological":
        assert max(len(np.unique(labels[part])) for part in parts) <= per_client
        assert len(covered) == np.isin(labels, labels[covered]).sum()
        if clients * per_client >= len(np.unique(labels)):
            assert len(covered) == samples
    else:
        assert len(covered) == samples
    again = partition(labels, clients, **arguments)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("scheme", ["dirichlet", "pathological", "iid"])
def test_seed_changes_the_partition(scheme):
    labels = balanced()
    first = partition(labels, 5, scheme=scheme, seed=1)
    second = partition(labels, 5, scheme=scheme, seed=2)
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_skew_grows_as_alpha_falls():
    labels = balanced()
    entropies = [
        label_entropy(partition(labels, 20, dirichlet=alpha, min_size=1), labels)
        for alpha in (0.1, 0.5, 2.0, 100.0)
    ]
    assert entropies == sorted(entropies)
    assert entropies[0] < 1.3
    assert entropies[-1] > 0.98 * np.log(10)


def test_class_counts_follow_the_dirichlet_mean_and_variance():
    labels = balanced(classes=4, per_class=1000)
    clients, alpha = 5, 1.0
    counts = np.stack(
        [
            [np.bincount(labels[part], minlength=4) for part in parts]
            for parts in (
                partition(labels, clients, dirichlet=alpha, min_size=1, seed=seed)
                for seed in range(150)
            )
        ]
    )  # (seeds, clients, classes)
    shares = counts / 1000
    mean = 1 / clients
    variance = mean * (1 - mean) / (clients * alpha + 1)
    assert np.allclose(shares.mean(axis=0), mean, atol=4 * np.sqrt(variance / 150))
    assert np.isclose(shares.var(), variance, rtol=0.1)


def test_samples_of_a_class_are_dealt_at_random_not_in_file_order():
    labels = np.zeros(1000, dtype=np.int64)
    for scheme in ("dirichlet", "pathological", "iid"):
        part = partition(labels, 2, scheme=scheme, dirichlet=100.0)[0]
        assert abs(part.mean() - 499.5) < 60


def test_pathological_uses_classes_evenly_and_splits_them_evenly():
    labels = balanced()
    parts = partition(labels, 100, scheme="pathological", classes_per_client=2)
    held = np.stack([np.bincount(labels[part], minlength=10) for part in parts])
    assert (np.count_nonzero(held, axis=1) == 2).all()
    assert (np.count_nonzero(held, axis=0) == 20).all()
    assert set(held[held > 0]) == {30}


def test_pathological_leaves_out_whole_classes_when_there_are_too_few_slots():
    labels = balanced()
    parts = partition(labels, 3, scheme="pathological", classes_per_client=2)
    counts = np.bincount(labels[np.concatenate(parts)], minlength=10)
    assert sorted(counts) == [0] * 4 + [600] * 6


def test_iid_sizes_differ_by_at_most_one():
    parts = partition(balanced(per_class=10), 7, scheme="iid")
    assert sorted(map(len, parts)) == [14] * 5 + [15] * 2


def test_infeasible_dirichlet_draw_is_an_error_soon():
    labels = balanced(per_class=5000)
    start = time.perf_counter()
    with pytest.raises(DataError) as caught:
        partition(labels, 100, dirichlet=0.001)
    assert time.perf_counter() - start < 5
    for part in ("Dirichlet(0.001)", "100 clients", "min_size 10", "50000", "--dirichlet"):
        assert part in str(caught.value)
    assert "smallest client has 0" in str(caught.value)


def test_large_partition_is_fast():
    labels = balanced(per_class=6000)
    start = time.perf_counter()
    parts = partition(labels, 100)
    split_clients(parts, labels)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("clients", "options", "words"),
    [
        (0, {}, ["clients is 0", "at least 1"]),
        (2, {"scheme": "dirichlett"}, ["'dirichlett'", "dirichlet, pathological, iid"]),
        (2, {"dirichlet": 0.0}, ["dirichlet is 0.0", "above 0"]),
        (2, {"dirichlet": float("nan")}, ["dirichlet is nan"]),
        (2, {"dirichlet": float("inf")}, ["dirichlet is inf"]),
        (2, {"classes_per_client": 0}, ["classes_per_client is 0", "at least 1"]),
        (2, {"min_size": 0}, ["min_size is 0", "at least 1"]),
        (2, {"seed": -1}, ["seed is -1", "at least 0"]),
    ],
)
def test_parameter_errors_name_value_and_expectation(clients, options, words):
    with pytest.raises(ConfigError) as caught:
        partition(balanced(), clients, **options)
    assert all(word in str(caught.value) for word in words)


def test_too_few_samples_is_an_error_with_the_numbers():
    with pytest.raises(DataError, match=r"99 samples cannot give 10 clients 10 each; .* 100"):
        partition(np.arange(99) % 3, 10)


def test_pathological_clients_under_min_size_are_an_error():
    labels = np.repeat([0, 1], [500, 4])
    with pytest.raises(DataError, match="smallest client 2 samples; expected min_size 10"):
        partition(labels, 4, scheme="pathological", classes_per_client=1)


def test_splits_are_disjoint_exhaustive_and_of_the_asked_sizes():
    labels = balanced(per_class=100)
    parts = partition(labels, 10)
    for client, (part, split) in enumerate(
        zip(parts, split_clients(parts, labels, (0.5, 0.2, 0.3)), strict=True)
    ):
        assert split.client == client
        together = torch.cat([split.train, split.val, split.test])
        assert together.dtype == torch.int64
        assert np.array_equal(together.sort().values.numpy(), part)
        assert len(split.val) == round(0.2 * len(part))
        assert len(split.test) == round(0.3 * len(part))


def test_splits_are_stratified():
    labels = np.repeat([0, 1, 2], [500, 400, 100])
    (split,) = split_clients([np.arange(1000)], labels)
    for part, size in ((split.train, 600), (split.val, 200), (split.test, 200)):
        counts = np.bincount(labels[part.numpy()], minlength=3)
        assert np.abs(counts - np.array([0.5, 0.4, 0.1]) * size).max() <= 2


def test_split_of_a_client_does_not_depend_on_the_others():
    labels = balanced(per_class=40)
    parts = partition(labels, 4)
    altered = [parts[3], parts[1][:9], parts[2]]
    before = split_clients(parts, labels, seed=7)[2]
    after = split_clients(altered, labels, seed=7)[2]
    other_seed = split_clients(parts, labels, seed=8)[2]
    assert torch.equal(before.train, after.train)
    assert torch.equal(before.test, after.test)
    assert not torch.equal(before.train, other_seed.train)


def test_clients_with_equal_samples_are_split_differently():
    part = np.arange(50)
    first, second = split_clients([part, part], np.zeros(50, dtype=np.int64))
    assert not torch.equal(first.train, second.train)


@pytest.mark.parametrize("fractions", [(0.6, 0.2, 0.2), (0.02, 0.96, 0.02), (0.01, 0.01, 0.98)])
def test_small_clients_keep_something_in_every_part(fractions):
    for size in range(4, 30):
        (split,) = split_clients([np.arange(size)], np.arange(size) % 3, fractions)
        assert isinstance(split, ClientSplit)
        assert len(split.train) >= 2
        assert len(split.val) >= 1
        assert len(split.test) >= 1
        assert len(split.train) + len(split.val) + len(split.test) == size


def test_a_client_too_small_to_split_is_named():
    with pytest.raises(DataError, match="client 1 has 3 samples; expected at least 4"):
        split_clients([np.arange(8), np.arange(8, 11)], np.zeros(11, dtype=np.int64))


@pytest.mark.parametrize("fractions", [(0.6, 0.4, 0.0), (0.6, 0.3, 0.3), (0.5, 0.5)])
def test_bad_fractions_are_an_error(fractions):
    with pytest.raises(ConfigError, match=r"fractions are .*; expected three positive"):
        split_clients([np.arange(8)], np.zeros(8, dtype=np.int64), fractions)


def test_negative_split_seed_is_an_error():
    with pytest.raises(ConfigError, match="seed is -1; expected at least 0"):
        split_clients([np.arange(8)], np.zeros(8, dtype=np.int64), seed=-1)


def test_stratified_order_is_a_permutation_that_places_rare_classes_anywhere():
    labels = np.array([0] * 9 + [1])
    rng = np.random.default_rng(0)
    orders = np.stack([stratified_order(labels, rng) for _ in range(3000)])
    assert (np.sort(orders, axis=1) == np.arange(10)).all()
    places = np.bincount(np.argmax(orders == 9, axis=1), minlength=10)
    assert places.min() > 100
