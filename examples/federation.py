"""What the examples share: a federation of three clients, a supernet, a client's part of a round.

Nothing in here belongs to a host codebase: each script keeps its host's classes and its loop.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, TensorDataset

from metadnas_ext.integrations import (
    Budget,
    LocalSearch,
    accuracy,
    derive,
    recalibrate,
    train_epoch,
    weight_parameters,
)
from metadnas_ext.nn import DerivedNet, Supernet
from metadnas_ext.space import genotype_cost

CLASSES = 3
ROUNDS = 3
SUPERNET = {
    "C": 4,
    "num_classes": CLASSES,
    "layers": 3,
    "nodes": 2,
    "image_size": 8,
    "image_channels": 1,
}
LEVELS = (0.35, 0.6, 0.9)
"""Each client's budget, as a share of the dearest network."""


@dataclass(frozen=True)
class ClientData:
    """One client's images, those that α sees in the search apart."""

    train: Dataset
    held_out: Dataset
    test: Dataset

    @property
    def size(self) -> int:
        """Training images, held-out ones included: the client's weight."""
        return len(self.train) + len(self.held_out)


def make_clients() -> list[ClientData]:
    """Three clients with the same classes in other proportions."""
    shares = ((2, 1, 1), (1, 2, 1), (1, 1, 2))
    return [
        ClientData(*(_stripes([n * k for k in share], seed=10 * i + n) for n in (12, 6, 8)))
        for i, share in enumerate(shares)
    ]


def make_supernet() -> Supernet:
    """The same on the server and on every client."""
    torch.manual_seed(0)
    return Supernet(**SUPERNET)


def make_budgets(supernet: Supernet) -> list[Budget]:
    return [Budget(supernet.shape, level) for level in LEVELS]


def batches(data: Dataset, shuffle: bool = True) -> DataLoader:
    return DataLoader(data, 16, shuffle=shuffle)


def search(model: nn.Module, data: ClientData, budget: Budget, epochs: int = 1) -> None:
    """A client's part of a round, in place."""
    optimizer = torch.optim.SGD(weight_parameters(model), 0.05, momentum=0.9)
    local = LocalSearch(model, optimizer, budget)
    for _ in range(epochs):
        local.epoch(batches(data.train), batches(data.held_out))


def own_network(
    model: nn.Module, data: ClientData, budget: Budget, head: nn.Module | None = None
) -> DerivedNet:
    """Behind the rounds: one more search, then the client's network within its budget, trained.

    `head`: the classifier, where the model keeps it outside the supernet.
    """
    search(model, data, budget)
    net = derive(model, budget)
    if head is not None:
        net.fc = copy.deepcopy(head)
    everything = batches(ConcatDataset([data.train, data.held_out]))
    recalibrate(net, everything)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for _ in range(6):
        train_epoch(net, everything, optimizer)
    return net


def alphas(state: dict[str, Tensor]) -> Tensor:
    """All of α in a state dict, wherever the supernet sits in the model."""
    return torch.cat([t.flatten() for name, t in state.items() if "alphas_" in name])


def judge(net: DerivedNet, data: ClientData, budget: Budget) -> dict[str, float]:
    """Test accuracy of a client's network, and its cost as a share of the client's budget."""
    return {
        "accuracy": accuracy(net, batches(data.test, shuffle=False)),
        "share": genotype_cost(budget.costs, net.genotype) / budget.limit,
    }


def report(host: str, after: dict[str, Tensor], judged: list[dict[str, float]]) -> None:
    """Prints one line of JSON; `after` is the state that holds α behind the rounds."""
    moved = alphas(after) - alphas(make_supernet().state_dict())
    figures = {
        "host": host,
        "accuracy": round(sum(own["accuracy"] for own in judged) / len(judged), 3),
        "chance": round(1 / CLASSES, 3),
        "alpha_moved": round(float(moved.abs().max()), 4),
        "largest_share_of_a_budget": round(max(own["share"] for own in judged), 3),
    }
    print(json.dumps(figures), flush=True)


def _stripes(counts: list[int], seed: int) -> TensorDataset:
    """8x8 images of horizontal, vertical and diagonal stripes in noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    phase = torch.stack([rows, columns, rows + columns]) * (torch.pi / 2)  # (classes, 8, 8)
    start = torch.rand(len(labels), 1, 1, generator=generator) * 2 * torch.pi
    noise = 0.5 * torch.randn(len(labels), 8, 8, generator=generator)
    return TensorDataset((torch.sin(phase[labels] + start) + noise)[:, None], labels)
