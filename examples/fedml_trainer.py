"""Meta-DNAS as a FedML trainer and aggregator, in FedML's single-process simulation.

With FedML installed its own base classes and loop are used, else ones of their shape.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from types import SimpleNamespace

import federation

from metadnas_ext import aggregate
from metadnas_ext.integrations import accuracy

try:
    from fedml.core import ClientTrainer, ServerAggregator
    from fedml.mlops import pre_setup
    from fedml.simulation.sp.fedavg import FedAvgAPI

    HOST = "FedML"
except ImportError:
    HOST = "FedML's shape"

    def pre_setup(args):
        """Tells FedML's logging of the arguments; without, it asks FedML's servers for them."""

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

        @abstractmethod
        def test(self, test_data, device, args): ...

    class FedAvgAPI:
        """The loop; whoever calls it sets `model_trainer`, which plays all clients."""

        def __init__(self, args, device, dataset, model):
            self.args, self.device = args, device
            self.samples, self.data = dataset[4], dataset[5]
            self.client_list = []

        def train(self):
            state = self.model_trainer.get_model_params()
            for _ in range(self.args.comm_round):
                replies = []
                for client, data in self.data.items():
                    self.model_trainer.set_id(client)
                    self.model_trainer.set_model_params(state)
                    self.model_trainer.train(data, self.device, self.args)
                    reply = self.model_trainer.get_model_params()
                    replies.append((self.samples[client], reply))
                state = self._aggregate(replies)
                self.model_trainer.set_model_params(state)


# What a user adds.


class WholeState:
    """Parameters are the state dict: w, α and batch norms' statistics."""

    def get_model_params(self):
        return {name: t.cpu().clone() for name, t in self.model.state_dict().items()}

    def set_model_params(self, model_parameters):
        self.model.load_state_dict(model_parameters)

    def test(self, test_data, device, args):
        """FedML's own figures, of the global supernet."""
        images = len(test_data.test)
        share = accuracy(self.model, federation.batches(test_data.test, shuffle=False))
        return {"test_correct": share * images, "test_total": images, "test_loss": 0.0}


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


class PairSimulation(FedAvgAPI):
    """FedML's single-process simulation takes no pair: it makes a trainer and averages itself."""

    def __init__(self, args, device, dataset, trainer, aggregator):
        super().__init__(args, device, dataset, copy.deepcopy(trainer.model))
        self.model_trainer, self.aggregator = trainer, aggregator
        for client in self.client_list:
            client.model_trainer = trainer

    def _aggregate(self, w_locals):
        state = self.aggregator.aggregate(w_locals)
        self.aggregator.set_model_params(state)
        return state


def main() -> None:
    model, clients = federation.make_supernet(), federation.make_clients()
    args = SimpleNamespace(
        using_mlops=False,
        dataset="stripes",
        client_num_in_total=len(clients),
        client_num_per_round=len(clients),
        comm_round=federation.ROUNDS,
        frequency_of_the_test=1,
        enable_wandb=False,
    )
    pre_setup(args)
    trainer = SearchingTrainer(copy.deepcopy(model), args)
    aggregator = AveragingAggregator(copy.deepcopy(model), args)
    local = dict(enumerate(clients))
    samples = {client: data.size for client, data in local.items()}
    sizes = (sum(samples.values()), sum(len(data.test) for data in clients))
    dataset = [*sizes, None, None, samples, local, local, federation.CLASSES]
    PairSimulation(args, "cpu", dataset, trainer, aggregator).train()
    judged = []
    for client, data in local.items():
        trainer.set_id(client)
        trainer.set_model_params(aggregator.get_model_params())
        judged.append(trainer.judge_own_network(data))
    federation.report(HOST, aggregator.get_model_params(), judged)


if __name__ == "__main__":
    main()
