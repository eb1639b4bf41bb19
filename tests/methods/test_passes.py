"""Equal budgets: how often each method trains on each client's images, counted where they are
fetched. docs/methods.md has the same table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metadnas_ext.data import ImageStore
from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods import METHODS

from ..federated._tiny import tiny_federation

EPOCHS, ROUNDS, ADAPT, FINETUNE = 2, 3, 2, 3
CONFIG = {
    "client__epochs": EPOCHS,
    "server__rounds": ROUNDS,
    "personalise__adapt_epochs": ADAPT,
    "personalise__finetune_epochs": FINETUNE,
    "personalise__curve_for": "all",
    "personalise__gate": False,
}
ON_AVERAGE = ROUNDS * EPOCHS * 2 // 3  # of the 3 seen clients 2 take part in a round

RECALIBRATION = 1  # a pass forwards only
FEDERATED = ADAPT + FINETUNE + RECALIBRATION
AT_THE_END = {
    "meta_dnas": FEDERATED,
    "fedavg": 0,
    "fedavg_ft": FEDERATED,
    "darts": ON_AVERAGE + FEDERATED,
    "fedavg_head": FEDERATED,
    "fedper": FEDERATED,
    "local_only": ON_AVERAGE + FEDERATED,
    "per_fedavg": FEDERATED,
    "ditto": FEDERATED,
    "shared_alpha": FEDERATED,
    "random": FEDERATED,
}
"""Passes over a client's training part behind the rounds."""


@dataclass
class Counting:
    """An image store that counts how often each image is fetched."""

    store: ImageStore
    counts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.counts = torch.zeros(len(self.store), dtype=torch.int64)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def __len__(self) -> int:
        return len(self.store)

    def gather(self, indices: Tensor) -> Tensor:
        self.counts += torch.bincount(indices, minlength=len(self.counts))
        return self.store.gather(indices)

    def passes(self, images: Tensor) -> int:
        """How often each of these was fetched: equally often."""
        (count,) = self.counts[images].unique().tolist()
        return int(count)


def counting(**changes: Any) -> tuple[Federation, Counting]:
    federation = tiny_federation(**(CONFIG | changes))
    store = Counting(federation.store)
    return replace(federation, store=store), store


def test_the_table_is_complete() -> None:
    assert AT_THE_END.keys() == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_passes_over_training_images_are_the_same_for_all(name: str) -> None:
    federation, store = counting()
    method = METHODS[name](federation)
    taken_part: list[int] = []
    for index in range(method.rounds):
        taken_part += method.round(index).clients
    for split in federation.splits:
        expected = EPOCHS * taken_part.count(split.client)
        assert store.passes(split.train) == expected, "in the rounds"
        assert not store.counts[split.test].any(), "test images are for the end"
    assert len(taken_part) == (0 if name in ("darts", "local_only") else ROUNDS * 2)

    before = store.counts.clone()
    method.personalise(range(4))
    store.counts -= before
    for split in federation.splits:
        assert store.passes(split.train) == AT_THE_END[name], "at the end"


def meta_dnas_passes(**changes: Any) -> list[int]:
    federation, store = counting(client__alpha_lr=0.5, **changes)
    METHODS["meta_dnas"](federation).personalise(range(4))
    return [store.passes(split.train) for split in federation.splits]


def test_the_gate_trains_a_second_network() -> None:
    """The one thing that a rival does not have; switched off by personalise.gate."""
    without, gated = meta_dnas_passes(), meta_dnas_passes(personalise__gate=True)
    assert without == [FEDERATED] * 4
    assert set(gated) <= {FEDERATED, FEDERATED + RECALIBRATION + FINETUNE}
    assert sum(gated) > sum(without)


def test_hessian_free_per_fedavg_sees_the_same_images() -> None:
    """It evaluates more gradients on them, which is in the documentation."""
    federation, store = counting(rivals__per_fedavg_kind="hessian_free")
    clients: Sequence[int] = METHODS["per_fedavg"](federation).round(0).clients
    for client in clients:
        assert store.passes(federation.splits[client].train) == EPOCHS
