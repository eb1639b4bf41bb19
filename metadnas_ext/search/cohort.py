"""A cohort of clients and the batches they train on together."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metadnas_ext.data import ClientSplit, Cycle, ImageStore, epoch_batches
from metadnas_ext.data.batches import Normaliser, cut, draw_cuts
from metadnas_ext.placement import CPU, to_device
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


class Batch(NamedTuple):
    """x (k, N, H, W, C), labels (k, N); sizes (k): images that count, and the same as `numbers`."""

    x: Tensor
    labels: Tensor
    sizes: Tensor
    numbers: tuple[int, ...]

    def rows(self, rows: slice) -> Batch:
        """That of some of the clients."""
        return Batch(self.x[rows], self.labels[rows], self.sizes[rows], self.numbers[rows])

    @property
    def full(self) -> bool:
        """Whether all images count."""
        return all(number == self.x.shape[1] for number in self.numbers)

    @property
    def counts(self) -> Tensor | None:
        """`sizes`, if they are needed."""
        return None if self.full else self.sizes

    def copy(self) -> Batch:
        """The same in memory of its own, so that a part does not keep the whole."""
        return Batch(self.x.clone(), self.labels.clone(), self.sizes.clone(), self.numbers)


def ordered(splits: Sequence[ClientSplit], batch_size: int) -> list[ClientSplit]:
    """Splits by steps an epoch, most first; ties by client."""
    return sorted(splits, key=lambda s: (-steps_per_epoch(s, batch_size), s.client))


def steps_per_epoch(split: ClientSplit, batch_size: int) -> int:
    return -(-len(split.train) // batch_size)


class Picked(NamedTuple):
    """What a client puts into a batch: image numbers (n) on the CPU, and on the device the columns
    of a table, int64 (2, n) or (5, n): image number, label and, to augment, where it is cut."""

    indices: Tensor
    table: Tensor


class Loader:
    """Makes batches on one device out of what the clients of a cohort have picked.

    Each client's part is zero-padded to `width`, which must not depend on the cohort: the order in
    which BLAS and reductions add up depends on it, and a client's result has to be the same, to the
    bit, alone and in any cohort.
    """

    def __init__(
        self,
        store: ImageStore,
        augment: bool,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._store, self._width, self._device = store, width, device
        self._augment = augment and store.augmentation != "none"
        self._normalise = Normaliser.of(store, device, dtype)
        self._places: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def pick(
        self, batches: Iterable[Tensor], generator: torch.Generator | None = None
    ) -> list[Picked]:
        """A client's next batches of image numbers (n), in one copy to the device.

        `generator` cuts the images of a batch as soon as it has come.
        """
        chosen, tables = [], []
        for indices in batches:
            rows = [indices, self._store.labels[indices]]
            if self._augment and generator is not None:
                rows += draw_cuts(self._store, len(indices), generator)
            chosen.append(indices)
            tables.append(torch.stack(rows))
        moved = to_device(torch.cat(tables, 1), self._device)
        parts = torch.split(moved, [len(indices) for indices in chosen], 1)
        return [Picked(*pair) for pair in zip(chosen, parts, strict=True)]

    def batch(self, picked: Sequence[Picked]) -> Batch:
        """What each client has picked, the images of all in one go."""
        numbers = tuple(len(one.indices) for one in picked)
        clients, width, store = len(picked), self._width, self._store
        table = torch.cat([one.table for one in picked], 1)  # (2 or 5, K), clients one by one
        images = self._images(picked, table[0])  # (K, H, W, C)
        if len(table) > 2:
            images = cut(images, table[2:])
        pixels, labels = self._normalise(images), table[1]
        sizes, places = self._places_of(numbers)
        if len(labels) < clients * width:
            padded = pixels.new_zeros(clients * width, *pixels.shape[1:])
            pixels = padded.index_copy_(0, places, pixels)
            labels = labels.new_zeros(clients * width).index_copy_(0, places, labels)
        side, channels = store.image_size, store.channels
        x = pixels.view(clients, width, side, side, channels)  # (G, N, H, W, C)
        return Batch(x, labels.view(clients, width), sizes, numbers)

    def _images(self, picked: Sequence[Picked], numbers: Tensor) -> Tensor:
        if self._store.device == self._device:
            return self._store.gather(numbers)
        return to_device(self._store.gather(torch.cat([p.indices for p in picked])), self._device)

    def _places_of(self, numbers: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The numbers as a tensor, and where their images go among all padded ones; kept, since
        the same few come again and again."""
        if numbers not in self._places:
            first = range(0, len(numbers) * self._width, self._width)
            starts = zip(first, numbers, strict=True)
            places = torch.cat([torch.arange(start, start + n) for start, n in starts])
            both = (torch.tensor(numbers), places)
            self._places[numbers] = (
                to_device(both[0], self._device),
                to_device(both[1], self._device),
            )
        return self._places[numbers]


class TrainBatches:
    """Train batches of a cohort, `epochs` passes each, and validation batches beside them.

    Each client draws from generators of its own, keyed by `key` and its number: what it sees does
    not depend on its cohort. It draws an epoch ahead, all of which goes to the device at once.
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
        device: torch.device = CPU,
    ) -> None:
        self._loader = Loader(store, augment, batch_size, dtype, device)
        self._splits = splits
        self._seed, self._key = seed, key
        self._batch_size = batch_size
        self.steps = [epochs * steps_per_epoch(split, batch_size) for split in splits]
        if self.steps != sorted(self.steps, reverse=True):
            raise ValueError("clients must be ordered by steps, most first; see `ordered`")
        clients = [split.client for split in splits]
        self._train_rng = [generator(seed, *key, "train", c) for c in clients]
        self._val_rng = [generator(seed, *key, "val", c) for c in clients]
        self._totals = to_device(torch.tensor(self.steps), device)
        self._train_queues: list[deque[Picked]] = [deque() for _ in splits]
        self._val_queues: list[deque[Picked]] = [deque() for _ in splits]
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
        return step / self._totals[: self.active(step)]

    def generators(self, step: int, purpose: str, rows: slice) -> list[torch.Generator]:
        """Of draws beside the batches, one a client, as much its own as its batches."""
        clients = [split.client for split in self._splits[rows]]
        return [generator(self._seed, *self._key, purpose, c, step) for c in clients]

    def train(self, active: int) -> Batch:
        return self._loader.batch([self._next_train(client) for client in range(active)])

    def val(self, active: int, first: int = 0) -> Batch:
        """Of the clients in rows [first, active)."""
        return self._loader.batch([self._next_val(client) for client in range(first, active)])

    def _next_train(self, client: int) -> Picked:
        if not self._train_queues[client]:
            split, rng = self._splits[client], self._train_rng[client]
            batches = epoch_batches(split.train, self._batch_size, rng)
            self._train_queues[client] += self._loader.pick(batches, rng)
        return self._train_queues[client].popleft()

    def _next_val(self, client: int) -> Picked:
        if not self._val_queues[client]:
            ahead = range(steps_per_epoch(self._splits[client], self._batch_size))
            batches = (self._cycles[client].next() for _ in ahead)
            self._val_queues[client] += self._loader.pick(batches, self._val_rng[client])
        return self._val_queues[client].popleft()


def passes(
    store: ImageStore,
    splits: Sequence[ClientSplit],
    part: str,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> Iterator[Batch]:
    """One pass in order over each client's `part` (train, val or test), without augmentation.

    Clients that have run out have size 0.
    """
    loader = Loader(store, False, batch_size, dtype, device)
    images = [getattr(split, part) for split in splits]
    picked = [loader.pick(own.split(batch_size)) for own in images]
    for step in range(-(-max(map(len, images)) // batch_size)):
        yield loader.batch([_at(mine, step) for mine in picked])


def _at(picked: Sequence[Picked], step: int) -> Picked:
    """That of a step, or nothing behind the end."""
    if step < len(picked):
        return picked[step]
    return Picked(picked[0].indices[:0], picked[0].table[:, :0])
