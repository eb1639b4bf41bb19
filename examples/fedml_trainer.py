"""Meta-DNAS as a FedML trainer and aggregator, under base classes of FedML's shape.

In FedML itself `ClientTrainer` and `ServerAggregator` come from fedml.core, and FedMLRunner makes
the loop of `main`: docs/hosts/fedml.md.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import federation

from metadnas_ext import aggregate


class ClientTrainer(ABC):
    """One object plays the clients that its process stands for; `id` says which."""

    def __init__(self, model, args):
        self.model, self.args, self.id = model, args, 0

    def set_id(self, trainer_id):
        self.id = trainer_id

    @abstractmethod
    def get_model_params(self): ...

    @abstractmethod
    def set_model_params(self, model_parameters): ...

    @abstractmethod
    def train(self, train_data, device, args): ...


class ServerAggregator(ABC):
    """Gets the round's (samples, parameters) pairs, in order."""

    def __init__(self, model, args):
        self.model, self.args = model, args

    @abstractmethod
    def get_model_params(self): ...

    @abstractmethod
    def set_model_params(self, model_parameters): ...

    @abstractmethod
    def aggregate(self, raw_client_model_or_grad_list): ...


# What a user adds.


class WholeState:
    """Parameters are the state dict: w, α and batch norms' statistics."""

    def get_model_params(self):
        return {name: t.cpu().clone() for name, t in self.model.state_dict().items()}

    def set_model_params(self, model_parameters):
        self.model.load_state_dict(model_parameters)


class SearchingTrainer(WholeState, ClientTrainer):
    def train(self, train_data, device, args):
        self.model.to(device)
        federation.search(self.model, train_data, self.budget())

    def judge_own_network(self, data):
        net = federation.own_network(self.model, data, self.budget())
        return federation.judge(net, data, self.budget())

    def budget(self):
        return federation.make_budgets(self.model)[self.id]


class AveragingAggregator(WholeState, ServerAggregator):
    def aggregate(self, raw_client_model_or_grad_list):
        samples, states = zip(*raw_client_model_or_grad_list, strict=True)
        return aggregate(states, samples)  # every client's α, not the first one's


def main() -> None:
    model, clients = federation.make_supernet(), federation.make_clients()
    trainer = SearchingTrainer(copy.deepcopy(model), None)
    aggregator = AveragingAggregator(copy.deepcopy(model), None)
    for _ in range(federation.ROUNDS):
        replies = []
        for client, data in enumerate(clients):
            trainer.set_id(client)
            trainer.set_model_params(aggregator.get_model_params())
            trainer.train(data, "cpu", None)
            replies.append((data.size, trainer.get_model_params()))
        aggregator.set_model_params(aggregator.aggregate(replies))
    judged = []
    for client, data in enumerate(clients):
        trainer.set_id(client)
        trainer.set_model_params(aggregator.get_model_params())
        judged.append(trainer.judge_own_network(data))
    federation.report("FedML", aggregator.get_model_params(), judged)


if __name__ == "__main__":
    main()
