"""Meta-DNAS as a FedLab trainer and handler, whose messages are one flat vector of the state dict.

With FedLab installed its own base classes and pipeline are used, else ones of their shape.
"""

from __future__ import annotations

import copy

import federation
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from metadnas_ext import aggregate

try:
    from fedlab.core.client.trainer import SerialClientTrainer
    from fedlab.core.server.handler import ServerHandler
    from fedlab.core.standalone import StandalonePipeline

    HOST = "FedLab"
except ImportError:
    HOST = "FedLab's shape"

    class ModelMaintainer:
        def __init__(self, model: nn.Module, cuda: bool = False, device: str | None = None) -> None:
            self._model = copy.deepcopy(model)

        @property
        def model_parameters(self) -> Tensor:
            return parameters_to_vector(t.float() for t in self._model.state_dict().values())

        def set_model(self, parameters: Tensor) -> None:
            tensors = list(self._model.state_dict().values())
            parts = parameters.split([t.numel() for t in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    class SerialClientTrainer(ModelMaintainer):
        def __init__(self, model: nn.Module, num_clients: int, cuda: bool = False) -> None:
            super().__init__(model)
            self.num_clients = num_clients

    class ServerHandler(ModelMaintainer):
        pass

    class StandalonePipeline:
        def __init__(self, handler: ServerHandler, trainer: SerialClientTrainer) -> None:
            self.handler, self.trainer = handler, trainer

        def main(self) -> None:
            while not self.handler.if_stop:
                sampled = self.handler.sample_clients()
                self.trainer.local_process(self.handler.downlink_package, sampled)
                for package in self.trainer.uplink_package:
                    self.handler.load(package)
                self.handler.evaluate()


class SearchingTrainer(SerialClientTrainer):
    """Plays all clients, one after the other; a package is [state as a vector, weight]."""

    def __init__(self, model: nn.Module, clients: list[federation.ClientData]) -> None:
        super().__init__(model, len(clients), False)
        self.dataset = clients
        self.budgets = federation.make_budgets(model)
        self._packages: list[list[Tensor]] = []

    @property
    def uplink_package(self) -> list[list[Tensor]]:
        packages, self._packages = self._packages, []
        return packages

    def local_process(self, payload: list[Tensor], id_list: list[int]) -> None:
        for client in id_list:
            self.set_model(payload[0])
            federation.search(self._model, self.dataset[client], self.budgets[client])
            weight = torch.tensor(float(self.dataset[client].size))
            self._packages.append([self.model_parameters, weight])


class AggregatingHandler(ServerHandler):
    """Averages the vectors of a round's clients."""

    def __init__(self, model: nn.Module, clients: int, rounds: int) -> None:
        super().__init__(model, False)
        self.clients, self.rounds = clients, rounds
        self._buffer: list[list[Tensor]] = []

    @property
    def downlink_package(self) -> list[Tensor]:
        return [self.model_parameters]

    @property
    def if_stop(self) -> bool:
        return self.rounds == 0

    def sample_clients(self) -> list[int]:
        return list(range(self.clients))

    def load(self, payload: list[Tensor]) -> bool:
        self._buffer.append(payload)
        if len(self._buffer) < self.clients:
            return False
        self.global_update(self._buffer)
        self._buffer = []
        self.rounds -= 1
        return True

    def global_update(self, buffer: list[list[Tensor]]) -> None:
        vectors, weights = zip(*buffer, strict=True)
        self.set_model(aggregate(torch.stack(vectors), torch.stack(weights)))

    def evaluate(self) -> tuple[float, float]:
        """Loss and accuracy, which FedLab's pipeline asks for; clients judge their own networks."""
        return 0.0, 0.0


def main() -> None:
    model, clients = federation.make_supernet(), federation.make_clients()
    handler = AggregatingHandler(model, len(clients), federation.ROUNDS)
    trainer = SearchingTrainer(model, clients)
    StandalonePipeline(handler, trainer).main()
    judged = []
    for data, budget in zip(clients, trainer.budgets, strict=True):
        trainer.set_model(handler.model_parameters)
        net = federation.own_network(trainer._model, data, budget)
        judged.append(federation.judge(net, data, budget))
    federation.report(HOST, handler._model.state_dict(), judged)


if __name__ == "__main__":
    main()
