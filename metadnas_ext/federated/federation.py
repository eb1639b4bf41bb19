"""The fixed facts of a run: images, who holds which, the search space, who can afford what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metadnas_ext.config import Config
from metadnas_ext.data import ClientSplit, ImageStore, load_dataset, partition, split_clients
from metadnas_ext.errors import BudgetError, ConfigError, DataError
from metadnas_ext.search.discretize import cheapest_within
from metadnas_ext.seeding import derived_seed, generator
from metadnas_ext.space import CostTable, Shape, cost_table, dearest_cost, network_shape


@dataclass(frozen=True)
class Federation:
    """Clients 0 .. n-1 with their data splits and budgets.

    `seen` take part in rounds; `unseen` never do and are adapted once, at the end. `budgets` is
    float64 [n], in the unit of `costs`.
    """

    config: Config
    store: ImageStore
    splits: tuple[ClientSplit, ...]
    seen: tuple[int, ...]
    unseen: tuple[int, ...]
    shape: Shape
    costs: CostTable
    budgets: Tensor

    @classmethod
    def build(cls, config: Config) -> Federation:
        """Loads and splits the data.

        Raises DataError, ConfigError or BudgetError, before anything is written, if the run cannot
        work: see the messages.
        """
        store = _load(config)
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
        shape = network_shape(
            config.space.space,
            channels=config.space.channels,
            layers=config.space.layers,
            nodes=config.space.nodes,
            classes=len(store.classes),
            image_size=store.image_size,
            image_channels=store.channels,
            stem_multiplier=config.space.stem_multiplier,
            partial=config.space.partial,
            candidates=config.space.candidates,
        )
        costs = cost_table(shape, config.budget.unit)
        seen, unseen = _seen_and_unseen(config)
        _check_batches(config, shape, splits)
        budgets = _budgets(config, costs)
        return cls(config, store, tuple(splits), seen, unseen, shape, costs, budgets)

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

    @property
    def tightest_budget(self) -> float:
        return float(self.budgets.min())


def _load(config: Config) -> ImageStore:
    data = config.data
    return load_dataset(
        data.dataset,
        data.data_dir,
        image_size=data.image_size,
        max_images=data.max_images,
        seed=derived_seed(config.run.seed, "subset"),
        download=data.download,
    )


def _seen_and_unseen(config: Config) -> tuple[tuple[int, ...], tuple[int, ...]]:
    clients = config.data.clients
    count = round(config.data.unseen * clients)
    if count >= clients:
        raise ConfigError(
            f"data.unseen is {config.data.unseen}: of {clients} clients none would train"
        )
    order = torch.randperm(clients, generator=generator(config.run.seed, "unseen")).tolist()
    return tuple(sorted(order[count:])), tuple(sorted(order[:count]))


def _budgets(config: Config, costs: CostTable) -> Tensor:
    cheapest = cheapest_within(costs, config.client.max_skips)
    dearest = dearest_cost(costs)
    levels = [level * dearest if level <= 1 else level for level in config.budget.levels]
    for given, level in zip(config.budget.levels, levels, strict=True):
        if level < cheapest:
            share = "" if given > 1 else f" (a share of {given:g})"
            raise BudgetError(
                f"budget.levels: {level:.0f} {costs.unit}{share} is below the cheapest feasible "
                f"cost of {cheapest:.0f} {costs.unit} (a share of {cheapest / dearest:.3f})"
            )
    clients = config.data.clients
    return torch.tensor([levels[c % len(levels)] for c in range(clients)], dtype=torch.float64)


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
