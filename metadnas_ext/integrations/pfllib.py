"""Meta-DNAS as a client and server pair of PFLlib, made out of PFLlib's own base classes.

    clientMetaDNAS = pfllib.client_class(Client)                  # flcore.clients.clientbase
    MetaDNAS = pfllib.server_class(Server, clientMetaDNAS)        # flcore.servers.serverbase

`args.model` is a `Supernet`. In every round the sampled clients search, and the server averages w,
batch norms' statistics and α; at the end each client searches once more, derives its network within
its budget and trains it. docs/hosts/pfllib.md has the steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from metadnas_ext.aggregation import WEIGHTED, aggregate
from metadnas_ext.integrations.client import (
    Budget,
    Loader,
    LocalSearch,
    SearchSettings,
    alpha_names,
    derive,
    held_out,
    recalibrate,
    supernet_in,
    train_epoch,
    weight_parameters,
)
from metadnas_ext.nn import DerivedNet
from metadnas_ext.space import genotype_cost


@dataclass(frozen=True)
class PairSettings:
    """What PFLlib's own arguments do not say.

    Attributes:
        budgets: levels as of `Budget`, dealt to the clients in turn.
        unit: of the budgets, "macs" or "params".
        val_share: of a client's training images, held out for α in the search.
        adapt_epochs: of the search from the last global model. finetune_epochs: of the derived
            network, on all training images.
        momentum, weight_decay: of SGD on w, whose rate is PFLlib's `local_learning_rate`.
        how: `aggregate`'s, but for "similarity", which makes no global model.
        search: the step on α.
    """

    budgets: Sequence[float] = (0.35, 0.6)
    unit: str = "macs"
    val_share: float = 0.3
    adapt_epochs: int = 1
    finetune_epochs: int = 4
    momentum: float = 0.9
    weight_decay: float = 3e-4
    how: str = "mean"
    search: SearchSettings = field(default_factory=SearchSettings)


def client_class(base: type[Any], settings: PairSettings | None = None) -> type[Any]:
    """The client of the pair: a subclass of `base`, PFLlib's `Client`."""
    members = {"settings": settings or PairSettings()}
    return type("clientMetaDNAS", (_SearchingClient, base), members)


def server_class(base: type[Any], client: type[Any]) -> type[Any]:
    """The server of the pair: a subclass of `base`, PFLlib's `Server`.

    `client` is what `client_class` returned; its settings are the server's too.
    """
    if not issubclass(client, _SearchingClient):
        raise TypeError(f"client is {client.__name__}, expected what client_class returned")
    if client.settings.how == "similarity":
        raise ValueError("how='similarity' makes a model for each client, expected one for all")
    return type("MetaDNAS", (_AveragingServer, base), {"client_class": client})


if TYPE_CHECKING:

    class _Client:
        """What PFLlib's `Client` has that the pair uses."""

        model: nn.Module
        id: int
        device: str
        batch_size: int
        learning_rate: float
        local_epochs: int
        learning_rate_decay: bool
        optimizer: torch.optim.Optimizer
        train_time_cost: dict[str, float]

        def __init__(
            self, args: Any, id: int, train_samples: int, test_samples: int, **kwargs: Any
        ) -> None: ...
        def load_train_data(self, batch_size: int | None = None) -> DataLoader[Any]: ...

    class _Server:
        """What PFLlib's `Server` has that the pair uses."""

        global_model: nn.Module
        clients: list[Any]
        new_clients: list[Any]
        selected_clients: list[Any]
        uploaded_models: list[nn.Module]
        uploaded_weights: list[float]
        rs_test_acc: list[float]
        global_rounds: int
        eval_gap: int
        num_new_clients: int
        eval_new_clients: bool
        auto_break: bool
        top_cnt: int

        def __init__(self, args: Any, times: int) -> None: ...
        def set_slow_clients(self) -> None: ...
        def set_clients(self, client: type[Any]) -> None: ...
        def set_new_clients(self, client: type[Any]) -> None: ...
        def select_clients(self) -> list[Any]: ...
        def send_models(self) -> None: ...
        def receive_models(self) -> None: ...
        def evaluate(self) -> None: ...
        def check_done(self, acc_lss: list[list[float]], top_cnt: int | None) -> bool: ...
        def save_results(self) -> None: ...
        def save_global_model(self) -> None: ...
else:
    _Client = _Server = object


class _SearchingClient(_Client):
    settings: PairSettings

    def __init__(
        self, args: Any, id: int, train_samples: int, test_samples: int, **kwargs: Any
    ) -> None:
        super().__init__(args, id, train_samples, test_samples, **kwargs)
        own = self.settings
        level = own.budgets[id % len(own.budgets)]
        self.budget = Budget(supernet_in(self.model).shape, level, own.unit)
        # α has an optimiser of its own.
        self.optimizer = self._sgd(weight_parameters(self.model))
        self.learning_rate_scheduler = torch.optim.lr_scheduler.ExponentialLR(
            self.optimizer, args.learning_rate_decay_gamma
        )

    def set_parameters(self, model: nn.Module) -> None:
        """Takes the global model: parameters and, unlike the base, batch norms' statistics."""
        self.model.load_state_dict(model.state_dict())

    def train(self) -> None:
        """A round of local search."""
        begin = time.time()
        self._search(self.local_epochs)
        if self.learning_rate_decay:
            self.learning_rate_scheduler.step()
        self.train_time_cost["num_rounds"] += 1
        self.train_time_cost["total_cost"] += time.time() - begin

    def personalise(self) -> DerivedNet:
        """From the global model in `self.model` to the client's own network, now `self.model`."""
        self._search(self.settings.adapt_epochs)
        net = derive(self.model, self.budget)
        everything = self._batches(self.load_train_data().dataset)
        recalibrate(net, everything)
        optimizer = self._sgd(net.parameters())
        for _ in range(self.settings.finetune_epochs):
            train_epoch(net, everything, optimizer, self.settings.search.clip)
        self.model = net
        return net

    def _search(self, epochs: int) -> None:
        self.optimizer.state.clear()  # momentum of the last round's weights
        search = LocalSearch(self.model, self.optimizer, self.budget, self.settings.search)
        parts = self._parts()
        for _ in range(epochs):
            search.epoch(*parts)

    def _parts(self) -> tuple[Loader, Loader]:
        """Batches for w and for α: the same images in every round."""
        data = self.load_train_data().dataset
        train, validation = held_out(data, self.settings.val_share, seed=self.id)
        return self._batches(train), self._batches(validation)

    def _batches(self, part: Any) -> Loader:
        # A last batch of one image would do for batch norm, but not tell much.
        drop_last = len(part) > self.batch_size
        return DataLoader(part, self.batch_size, shuffle=True, drop_last=drop_last)

    def _sgd(self, parameters: Any) -> torch.optim.Optimizer:
        own = self.settings
        return torch.optim.SGD(
            parameters, self.learning_rate, momentum=own.momentum, weight_decay=own.weight_decay
        )


class _AveragingServer(_Server):
    client_class: type[_SearchingClient]

    def __init__(self, args: Any, times: int) -> None:
        super().__init__(args, times)
        self.set_slow_clients()
        self.set_clients(self.client_class)

    def train(self) -> None:
        """All rounds, then every client's own network."""
        for index in range(self.global_rounds + 1):
            begin = time.time()
            self.selected_clients = self.select_clients()
            self.send_models()
            if index % self.eval_gap == 0:
                print(f"\nRound {index}: the global supernet on every client")
                self.evaluate()
            for client in self.selected_clients:
                client.train()
            self.receive_models()
            self.aggregate_parameters()
            print(f"Round {index}: {time.time() - begin:.1f} s")
            if self.auto_break and self.check_done([self.rs_test_acc], self.top_cnt):
                break
        self._personalise(self.clients)
        print("\nEvery client's own network")
        self.evaluate()
        self.save_results()
        self.save_global_model()
        if self.num_new_clients > 0:
            self.eval_new_clients = True
            self.set_new_clients(self.client_class)
            print("\nNew clients' own networks")
            self.evaluate()

    def aggregate_parameters(self) -> None:
        """w, α and batch norms' statistics; counters stay whole numbers."""
        how = self.client_class.settings.how
        weights = self.uploaded_weights if how in WEIGHTED else None
        states = [model.state_dict() for model in self.uploaded_models]
        # Softmax ignores a constant added to an edge of α; order and distance do not.
        center = () if how == "mean" else alpha_names(self.global_model)
        merged = aggregate(states, weights, how, center=center)
        assert isinstance(merged, dict)
        self.global_model.load_state_dict(merged)

    def fine_tuning_new_clients(self) -> None:
        """What `evaluate` calls for clients that were in no round."""
        self._personalise(self.new_clients)

    def _personalise(self, clients: Sequence[Any]) -> None:
        for client in clients:
            client.set_parameters(self.global_model)
            net = client.personalise()
            cost, budget = genotype_cost(client.budget.costs, net.genotype), client.budget
            print(
                f"client {client.id}: {cost:.0f} of {budget.limit:.0f} {budget.costs.unit}, "
                f"{net.genotype.to_json()}"
            )
