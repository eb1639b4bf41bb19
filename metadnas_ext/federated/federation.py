"""The fixed facts of a run: images, who holds which, the search space, who can afford what."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from metadnas_ext.config import Config
from metadnas_ext.config_checks import check_graphs
from metadnas_ext.data import (
    ClientSplit,
    ImageStore,
    MemoryStore,
    load_dataset,
    partition,
    split_clients,
)
from metadnas_ext.errors import ConfigError, DataError
from metadnas_ext.federated.devices import (
    assigned_devices,
    client_budgets,
    common_table,
    device_tables,
)
from metadnas_ext.placement import CPU, device_of, fits, settled_name, to_device
from metadnas_ext.seeding import derived_seed, generator
from metadnas_ext.space import CohortCosts, CostTable, Shape, network_shape


@dataclass(frozen=True)
class Federation:
    """Clients 0 .. n-1 with their data splits, devices and budgets.

    `seen` take part in rounds; `unseen` never do and are adapted once, at the end. `tables` are the
    costs on each device class, `device_of` is each client's class; `budgets` is float64 [n], each
    in the unit of the client's own table, on the CPU as the tables. Methods compute on `device`.
    """

    config: Config
    store: ImageStore
    splits: tuple[ClientSplit, ...]
    seen: tuple[int, ...]
    unseen: tuple[int, ...]
    shape: Shape
    tables: tuple[CostTable, ...]
    device_of: tuple[int, ...]
    budgets: Tensor
    device: torch.device = CPU

    @classmethod
    def build(cls, config: Config) -> Federation:
        """Loads and splits the data. Of "auto", the configuration keeps the device it stands for.

        Raises DataError, ConfigError or BudgetError, before anything is written, if the run cannot
        work: see the messages.
        """
        config = config.updated({"run.device": settled_name(config.run.device)})
        check_graphs(config)
        device = device_of(config.run.device)
        store = _placed(load_images(config), device)
        labels = store.labels.numpy()
        data = config.data
        parts = partition(
            labels,
            data.clients,
            scheme=data.partition,
            dirichlet=data.dirichlet,
            classes_per_client=data.classes_per_client,
            min_size=data.min_size,
            seed=derived_seed(config.run.seed, "partition"),
        )
        fractions = (
            1 - data.val_fraction - data.test_fraction,
            data.val_fraction,
            data.test_fraction,
        )
        splits = split_clients(
            parts, labels, fractions, seed=derived_seed(config.run.seed, "split")
        )
        shape = configured_shape(config, len(store.classes), store.image_size, store.channels)
        seen, unseen = _seen_and_unseen(config)
        _check_batches(config, shape, splits)
        tables, classes = device_tables(config, shape), assigned_devices(config)
        budgets = client_budgets(config, tables, classes)
        return cls(
            *(config, store, tuple(splits), seen, unseen, shape, tables, classes, budgets),
            device=device,
        )

    def fingerprint(self) -> str:
        """A hash of what the configuration alone does not decide: labels, splits, costs, budgets.

        Pixels are not in it: reading all of them would take too long.
        """
        digest = hashlib.sha256()
        parts = [s for split in self.splits for s in (split.train, split.val, split.test)]
        tables = [table.cells for table in self.tables]
        fixed = torch.tensor([table.fixed for table in self.tables], dtype=torch.float64)
        for tensor in (self.store.labels, *parts, *tables, fixed, self.budgets):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def sample(self, round_index: int) -> list[int]:
        """The clients of a round, in ascending order."""
        wanted = min(self.config.server.clients_per_round, len(self.seen))
        order = torch.randperm(
            len(self.seen), generator=generator(self.config.run.seed, "sample", round_index)
        )
        return sorted(self.seen[i] for i in order[:wanted].tolist())

    def cohorts(self, clients: Sequence[int]) -> Iterator[list[int]]:
        """Cuts clients into groups that train together."""
        size = self.config.server.cohort
        for start in range(0, len(clients), size):
            yield list(clients[start : start + size])

    def of(self, clients: Sequence[int]) -> list[ClientSplit]:
        return [self.splits[client] for client in clients]

    def costs_of(self, client: int) -> CostTable:
        """What candidates cost on the client's device."""
        return self.tables[self.device_of[client]]

    def device_name(self, client: int) -> str:
        """The entry of `budget.devices`, or the unit that all clients count in."""
        budget = self.config.budget
        return (budget.devices or (budget.unit,))[self.device_of[client]]

    def cohort_costs(self, clients: Sequence[int]) -> CostTable | CohortCosts:
        """The table that all clients of the federation share, or one for each of `clients`.

        On the device of the run.
        """
        if len(self._tables_there) == 1:
            return self._tables_there[0]
        return CohortCosts.of([self._tables_there[self.device_of[client]] for client in clients])

    def cohort_budgets(self, clients: Sequence[int]) -> Tensor:
        """The budgets of some clients, (G) on the device of the run."""
        return to_device(self.budgets[list(clients)], self.device)

    @cached_property
    def _tables_there(self) -> tuple[CostTable, ...]:
        if self.device == CPU:
            return self.tables
        return tuple(table.to(self.device) for table in self.tables)

    def common_budget(self) -> tuple[CostTable, float]:
        """A table and a budget such that what fits is within every client's: see `common_table`."""
        return common_table(self.tables, self.device_of, self.budgets)

    @property
    def costs(self) -> CostTable:
        """The table that all clients share. ValueError if there are several: use `costs_of`."""
        if len(self.tables) != 1:
            raise ValueError(f"the clients have {len(self.tables)} cost tables, not one")
        return self.tables[0]

    @property
    def unit(self) -> str | None:
        """The unit of all costs; None if devices differ in it."""
        units = {table.unit for table in self.tables}
        return units.pop() if len(units) == 1 else None


def configured_shape(config: Config, classes: int, image_size: int, image_channels: int) -> Shape:
    """Geometry of the networks of a run on images of this kind."""
    space = config.space
    return network_shape(
        space.space,
        channels=space.channels,
        layers=space.layers,
        nodes=space.nodes,
        classes=classes,
        image_size=image_size,
        image_channels=image_channels,
        stem_multiplier=space.stem_multiplier,
        partial=space.partial,
        candidates=space.candidates,
    )


def load_images(config: Config) -> ImageStore:
    """The dataset of a run."""
    data = config.data
    return load_dataset(
        data.dataset,
        data.data_dir,
        image_size=data.image_size,
        max_images=data.max_images,
        seed=derived_seed(config.run.seed, "subset"),
        download=data.download,
    )


def _placed(store: ImageStore, device: torch.device) -> ImageStore:
    """The images on the device if they are in memory and fit; else batches move one by one."""
    if isinstance(store, MemoryStore) and fits(store.pixels.nbytes, device):
        return store.to(device)
    return store


def _seen_and_unseen(config: Config) -> tuple[tuple[int, ...], tuple[int, ...]]:
    clients = config.data.clients
    count = round(config.data.unseen * clients)
    if count >= clients:
        raise ConfigError(
            f"data.unseen is {config.data.unseen}: of {clients} clients none would train"
        )
    order = torch.randperm(clients, generator=generator(config.run.seed, "unseen")).tolist()
    return tuple(sorted(order[count:])), tuple(sorted(order[:count]))


def _check_batches(config: Config, shape: Shape, splits: Sequence[ClientSplit]) -> None:
    """Batch statistics need more than one value per channel in the smallest feature map."""
    pixels = shape.cells()[-1].size_out ** 2
    if pixels > 1:
        return
    size = config.client.batch_size
    for split in splits:
        batches = -(-len(split.train) // size)
        smallest = min(len(split.train) // batches, len(split.val), size)
        if smallest < 2:
            raise DataError(
                f"client {split.client} would train on a batch of one image with feature maps of "
                f"one pixel ({shape.image_size} pixels, {shape.layers} layers): batch norm needs "
                f"more; use larger images, fewer layers or a larger data.min_size"
            )
