"""Which client holds which samples, and each client's own train, validation and test parts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metadnas_ext.errors import ConfigError, DataError

SCHEMES = ("dirichlet", "pathological", "iid")

Labels = npt.NDArray[np.integer[Any]]
Indices = npt.NDArray[np.int64]

_MAX_DRAWS = 200
_MAX_DIRICHLET = 1e6


def partition(
    labels: Labels,
    clients: int,
    *,
    scheme: str = "dirichlet",
    dirichlet: float = 0.5,
    classes_per_client: int = 2,
    min_size: int = 10,
    seed: int = 0,
) -> list[Indices]:
    """Deal samples out to clients: one sorted int64 index array per client, all disjoint.

    labels: integers [n]. scheme:
    - "dirichlet": each class is shared out in proportions drawn from Dir(dirichlet) over clients
      (Yurochkin et al. 2019; smaller is more skewed). A draw that leaves a client with fewer than
      min_size samples is repeated, at most 200 times. Covers every sample.
    - "pathological" (after McMahan et al. 2017): each client holds at most classes_per_client
      classes, each class is split evenly over its holders and all classes have equally many
      holders, give or take one. With clients * classes_per_client below the number of classes,
      a random choice of classes is used and all samples of the others go to no client; otherwise
      every sample is covered.
    - "iid": a random split into sizes that differ by at most 1. Covers every sample.

    Raises ConfigError for a parameter out of range, DataError where the samples cannot give
    every client min_size of them.
    """
    _check_parameters(clients, scheme, dirichlet, classes_per_client, min_size, seed)
    samples = len(labels)
    if samples < clients * min_size:
        raise DataError(
            f"{samples} samples cannot give {clients} clients {min_size} each; "
            f"expected at least {clients * min_size}, fewer clients, or a smaller min_size"
        )
    rng = np.random.default_rng(seed)
    if scheme == "iid":
        owner = rng.permutation(np.arange(samples) % clients)
        return _group(owner, clients)
    by_class = np.unique(labels, return_inverse=True)[1]
    class_sizes = np.bincount(by_class)
    if scheme == "dirichlet":
        counts = _dirichlet_counts(class_sizes, clients, dirichlet, min_size, rng)
    else:
        counts = _pathological_counts(class_sizes, clients, classes_per_client, min_size, rng)
    return _group(_deal(by_class, counts, rng), clients)


@dataclass(frozen=True)
class ClientSplit:
    """One client's disjoint parts: sorted int64 indices into the dataset, [n_part] each."""

    client: int
    train: Tensor
    val: Tensor
    test: Tensor


def split_clients(
    parts: Sequence[Indices],
    labels: Labels,
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
    seed: int = 0,
) -> list[ClientSplit]:
    """Split each client's samples into train, val and test, stratified by class at random.

    Sizes follow `fractions` up to rounding; val and test hold at least 1 sample, train at least 2.
    A client's split depends on seed, its position and its own samples, never on other clients.
    Raises ConfigError unless fractions are three positive numbers with sum 1, DataError naming
    a client with fewer than 4 samples.
    """
    if len(fractions) != 3 or not min(fractions) > 0 or not math.isclose(sum(fractions), 1):
        raise ConfigError(f"fractions are {fractions}; expected three positive numbers with sum 1")
    _check_seed(seed)
    splits = []
    for client, part in enumerate(parts):
        size = len(part)
        if size < 4:
            raise DataError(
                f"client {client} has {size} samples; expected at least 4 (2 train, 1 val, 1 test)"
            )
        val = min(max(round(fractions[1] * size), 1), size - 3)
        test = min(max(round(fractions[2] * size), 1), size - 2 - val)
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(client,)))
        order = part[stratified_order(labels[part], rng)]
        pieces = np.split(order, [size - val - test, size - test])
        splits.append(ClientSplit(client, *(torch.from_numpy(np.sort(p)) for p in pieces)))
    return splits


def stratified_order(labels: Labels, rng: np.random.Generator) -> Indices:
    """A random order of 0..n-1 in which every run of entries has about the whole's class shares.

    Each class is shuffled and spread evenly over the order from a random start (systematic
    sampling), so that even a class with one sample is equally likely anywhere.
    """
    _, by_class, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    shuffled = rng.permutation(len(labels))
    grouped = shuffled[np.argsort(by_class[shuffled], kind="stable")]
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    start = rng.random(len(sizes))
    position = (rank + np.repeat(start, sizes)) / np.repeat(sizes, sizes)
    return grouped[np.argsort(position, kind="stable")]


def _dirichlet_counts(
    class_sizes: Indices, clients: int, alpha: float, min_size: int, rng: np.random.Generator
) -> Indices:
    """Samples of each class for each client, [classes, clients]."""
    best = -1
    for _ in range(_MAX_DRAWS):
        shares = rng.dirichlet(np.full(clients, alpha), size=len(class_sizes))
        counts = _whole_counts(shares, class_sizes)
        smallest = int(counts.sum(axis=0).min())
        if smallest >= min_size:
            return counts
        best = max(best, smallest)
    raise DataError(
        f"no Dirichlet({alpha:g}) draw of {_MAX_DRAWS} gave all {clients} clients min_size "
        f"{min_size} of {int(class_sizes.sum())} samples: the best draw's smallest client has "
        f"{best}; use fewer clients, a larger --dirichlet or a smaller min_size"
    )


def _pathological_counts(
    class_sizes: Indices, clients: int, per_client: int, min_size: int, rng: np.random.Generator
) -> Indices:
    """Samples of each class for each client, [classes, clients]."""
    holds = np.zeros((len(class_sizes), clients))
    holders = np.zeros(len(class_sizes))
    for client in range(clients):
        # The classes with fewest holders so far, ties at random: distinct and evenly used.
        fewest = np.lexsort((rng.random(len(class_sizes)), holders))[:per_client]
        holds[fewest, client] = 1
        holders[fewest] += 1
    shares = holds / np.maximum(holders, 1)[:, None]
    counts = _whole_counts(shares, np.where(holders > 0, class_sizes, 0))
    smallest = int(counts.sum(axis=0).min())
    if smallest < min_size:
        raise DataError(
            f"{clients} clients of {per_client} classes each leave the smallest client "
            f"{smallest} samples; expected min_size {min_size}: use fewer clients, more "
            "classes_per_client or a smaller min_size"
        )
    return counts


def _whole_counts(shares: npt.NDArray[np.float64], class_sizes: Indices) -> Indices:
    """Round shares [classes, clients] of class_sizes [classes] to counts that add up exactly."""
    # Running sums end within rounding of 1, so the last cut is the class's size to the sample.
    cuts = np.rint(np.cumsum(shares, axis=1) * class_sizes[:, None]).astype(np.int64)
    return np.diff(cuts, axis=1, prepend=0)


def _deal(by_class: Indices, counts: Indices, rng: np.random.Generator) -> Indices:
    """Each sample's client, int64 [n]; -1 for the classes whose row of `counts` is empty."""
    shuffled = rng.permutation(len(by_class))
    grouped = shuffled[np.argsort(by_class[shuffled], kind="stable")]
    grouped = grouped[counts.sum(axis=1)[by_class[grouped]] > 0]
    owner = np.full(len(by_class), -1, dtype=np.int64)
    classes, clients = counts.shape
    owner[grouped] = np.repeat(np.tile(np.arange(clients), classes), counts.ravel())
    return owner


def _group(owner: Indices, clients: int) -> list[Indices]:
    """The sorted sample indices of each client, without the samples of owner -1."""
    order = np.argsort(owner, kind="stable")
    sizes = np.bincount(owner + 1, minlength=clients + 1)
    return np.split(order, np.cumsum(sizes)[:-1])[1:]


def _check_parameters(
    clients: int,
    scheme: str,
    dirichlet: float,
    classes_per_client: int,
    min_size: int,
    seed: int,
) -> None:
    if scheme not in SCHEMES:
        raise ConfigError(f"partition scheme {scheme!r} is unknown; expected {', '.join(SCHEMES)}")
    at_least_one = {
        "clients": clients,
        "classes_per_client": classes_per_client,
        "min_size": min_size,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}; expected at least 1")
    if not 0 < dirichlet <= _MAX_DIRICHLET:
        raise ConfigError(
            f"dirichlet is {dirichlet}; expected above 0 and at most {_MAX_DIRICHLET:g}"
        )
    _check_seed(seed)


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ConfigError(f"seed is {seed}; expected at least 0")
