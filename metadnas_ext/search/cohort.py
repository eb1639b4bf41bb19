"""A cohort of clients and the batches they train on together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metadnas_ext.data import ClientSplit, Cycle, ImageStore, epoch_batches, prepare
from metadnas_ext.seeding import generator


@dataclass
class Cohort:
    """G clients' state: theta (G, P), running (G, R), and α (G, types, E, O) while searching.

    Clients with more steps an epoch come first (see `ordered`), so that those still training are
    always the first rows.
    """

    splits: list[ClientSplit]
    theta: Tensor
    running: Tensor
    alpha: Tensor | None = None

    @property
    def clients(self) -> list[int]:
        return [split.client for split in self.splits]

    @property
    def train_sizes(self) -> Tensor:
        """Training images of each client, float64 (G): the weights of an average over clients."""
        return torch.tensor([len(s.train) for s in self.splits], dtype=torch.float64)


class Batch(NamedTuple):
    """x (k, N, H, W, C), labels (k, N); sizes (k): images that count; counts: sizes if unequal."""

    x: Tensor
    labels: Tensor
    sizes: Tensor

    def rows(self, rows: slice) -> Batch:
        """That of some of the clients."""
        return Batch(self.x[rows], self.labels[rows], self.sizes[rows])

    @property
    def counts(self) -> Tensor | None:
        return None if bool((self.sizes == self.x.shape[1]).all()) else self.sizes

    def copy(self) -> Batch:
        """The same in memory of its own, so that a part does not keep the whole."""
        return Batch(*(tensor.clone() for tensor in self))


def ordered(splits: Sequence[ClientSplit], batch_size: int) -> list[ClientSplit]:
    """Splits by steps an epoch, most first; ties by client."""
    return sorted(splits, key=lambda s: (-steps_per_epoch(s, batch_size), s.client))


def steps_per_epoch(split: ClientSplit, batch_size: int) -> int:
    return -(-len(split.train) // batch_size)


def collate(
    store: ImageStore,
    indices: Sequence[Tensor],
    generators: Sequence[torch.Generator | None],
    augment: bool,
    width: int,
    dtype: torch.dtype,
) -> Batch:
    """One batch from each client's image indices, zero-padded to `width`.

    The width must not depend on the cohort: the order in which BLAS and reductions add up depends
    on it, and a client's result has to be the same, to the bit, alone and in any cohort.
    """
    sizes = torch.tensor([len(i) for i in indices])
    side, channels = store.image_size, store.channels
    x = torch.zeros(len(indices), width, side, side, channels, dtype=dtype)
    labels = torch.zeros(len(indices), width, dtype=torch.int64)
    for row, (chosen, gen) in enumerate(zip(indices, generators, strict=True)):
        if len(chosen) == 0:
            continue
        images = store.gather(chosen)
        x[row, : len(chosen)] = prepare(images, store, augment=augment, generator=gen, dtype=dtype)
        labels[row, : len(chosen)] = store.labels[chosen]
    return Batch(x, labels, sizes)


class TrainBatches:
    """Train batches of a cohort, `epochs` passes each, and validation batches beside them.

    Each client draws from generators of its own, keyed by `key` and its number: what it sees does
    not depend on its cohort.
    """

    def __init__(
        self,
        store: ImageStore,
        splits: Sequence[ClientSplit],
        batch_size: int,
        epochs: int,
        augment: bool,
        seed: int,
        *key: str | int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._store = store
        self._dtype = dtype
        self._splits = splits
        self._seed, self._key = seed, key
        self._batch_size = batch_size
        self._augment = augment
        self.steps = [epochs * steps_per_epoch(split, batch_size) for split in splits]
        if self.steps != sorted(self.steps, reverse=True):
            raise ValueError("clients must be ordered by steps, most first; see `ordered`")
        clients = [split.client for split in splits]
        self._train_rng = [generator(seed, *key, "train", c) for c in clients]
        self._val_rng = [generator(seed, *key, "val", c) for c in clients]
        self._queues: list[Iterator[Tensor]] = [iter(()) for _ in splits]
        self._cycles = [
            Cycle(split.val, batch_size, rng)
            for split, rng in zip(splits, self._val_rng, strict=True)
        ]

    def __len__(self) -> int:
        """Steps of the client with the most."""
        return max(self.steps, default=0)

    def active(self, step: int) -> int:
        """How many clients, from the first, still train at `step`."""
        return sum(total > step for total in self.steps)

    def within(self, step: int, epochs: int) -> int:
        """How many clients, from the first, are at `step` in the first `epochs` of their epochs."""
        return sum(epochs * steps_per_epoch(s, self._batch_size) > step for s in self._splits)

    def progress(self, step: int) -> Tensor:
        """Share of its steps that each active client has done at `step`, (k)."""
        return step / torch.tensor(self.steps[: self.active(step)])

    def generators(self, step: int, purpose: str, rows: slice) -> list[torch.Generator]:
        """Of draws beside the batches, one a client, as much its own as its batches."""
        clients = [split.client for split in self._splits[rows]]
        return [generator(self._seed, *self._key, purpose, c, step) for c in clients]

    def train(self, active: int) -> Batch:
        indices = [self._next(client) for client in range(active)]
        return self._collate(indices, self._train_rng)

    def val(self, active: int, first: int = 0) -> Batch:
        """Of the clients in rows [first, active)."""
        indices = [cycle.next() for cycle in self._cycles[first:active]]
        return self._collate(indices, self._val_rng[first:])

    def _collate(self, indices: list[Tensor], generators: list[torch.Generator]) -> Batch:
        return collate(
            self._store,
            indices,
            generators[: len(indices)],
            self._augment,
            self._batch_size,
            self._dtype,
        )

    def _next(self, client: int) -> Tensor:
        for indices in self._queues[client]:
            return indices
        split, rng = self._splits[client], self._train_rng[client]
        self._queues[client] = iter(epoch_batches(split.train, self._batch_size, rng))
        return next(self._queues[client])


def passes(
    store: ImageStore,
    splits: Sequence[ClientSplit],
    part: str,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Batch]:
    """One pass in order over each client's `part` (train, val or test), without augmentation.

    Clients that have run out have size 0.
    """
    indices = [getattr(split, part) for split in splits]
    longest = max(len(i) for i in indices)
    for start in range(0, longest, batch_size):
        chosen = [i[start : start + batch_size] for i in indices]
        yield collate(store, chosen, [None] * len(chosen), False, batch_size, dtype)
