"""Meta-DNAS as an FL-bench method whose α stays on the clients, under base classes of its shape.

In FL-bench itself `FedAvgClient` and `FedAvgServer` come from src.client.fedavg and
src.server.fedavg, and main.py finds the server class by its name: docs/hosts/fl-bench.md.
"""

from __future__ import annotations

import copy

import federation
from torch import nn

from metadnas_ext import aggregate
from metadnas_ext.integrations import Budget
from metadnas_ext.nn import Supernet


class DecoupledModel(nn.Module):
    """FL-bench's models are a base and a classifier."""

    def __init__(self):
        super().__init__()
        self.base = self.classifier = None

    def forward(self, x):
        return self.classifier(self.base(x))


class FedAvgClient:
    """One object plays all clients, one after the other; state travels in packages."""

    def __init__(self, model):
        self.model = model
        self.personal_params_name = []
        self.regular_params_name = [name for name, _ in model.named_parameters()]

    def set_parameters(self, package):
        self.client_id = package["client_id"]
        self.data = federation.make_clients()[self.client_id]
        self.model.load_state_dict(package["regular_model_params"], strict=False)
        self.model.load_state_dict(package["personal_model_params"], strict=False)

    def train(self, server_package):
        self.set_parameters(server_package)
        self.fit()
        return self.package()

    def package(self):
        state = self.model.state_dict()
        regular = {key: state[key].clone() for key in self.regular_params_name}
        personal = {key: state[key].clone() for key in self.personal_params_name}
        return {
            "weight": self.data.size,
            "regular_model_params": regular,
            "personal_model_params": personal,
        }


class FedAvgServer:
    """Keeps the public parameters and each client's personal ones."""

    client_cls = FedAvgClient

    def __init__(self, model, clients):
        self.model = model
        self.public_model_params = {n: p.data.clone() for n, p in model.named_parameters()}
        self.clients_personal_model_params = {i: {} for i in range(clients)}
        self.worker = self.client_cls(copy.deepcopy(model))

    def package(self, client_id):
        return {
            "client_id": client_id,
            "regular_model_params": copy.deepcopy(self.public_model_params),
            "personal_model_params": self.clients_personal_model_params[client_id],
        }

    def train_one_round(self):
        packages = {}
        for client_id, personal in self.clients_personal_model_params.items():
            packages[client_id] = self.worker.train(self.package(client_id))
            personal.update(packages[client_id]["personal_model_params"])
        self.aggregate_client_updates(packages)


# What a user adds: a model, a client, a server.


class DARTS(DecoupledModel):
    def __init__(self, supernet: Supernet):
        super().__init__()
        self.classifier = supernet.fc
        supernet.fc = nn.Identity()
        self.base = supernet


class MetaDNASClient(FedAvgClient):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # α stays, as any name listed here; batch norms' statistics travel with w.
        alphas = [name for name in self.regular_params_name if "alphas_" in name]
        statistics = [name for name, _ in self.model.named_buffers()]
        self.personal_params_name += alphas
        self.regular_params_name = [n for n in self.regular_params_name if n not in alphas]
        self.regular_params_name += statistics

    def fit(self):
        federation.search(self.model, self.data, self.budget())

    def budget(self) -> Budget:
        return federation.make_budgets(self.model.base)[self.client_id]


class MetaDNASServer(FedAvgServer):
    client_cls = MetaDNASClient

    def aggregate_client_updates(self, client_packages):
        packages = client_packages.values()
        updates = [package["regular_model_params"] for package in packages]
        self.public_model_params = aggregate(updates, [p["weight"] for p in packages])
        self.model.load_state_dict(self.public_model_params, strict=False)

    def judge_own_network(self, client_id):
        worker = self.worker
        worker.set_parameters(self.package(client_id))
        budget, head = worker.budget(), worker.model.classifier
        net = federation.own_network(worker.model, worker.data, budget, head)
        return federation.judge(net, worker.data, budget)


def main() -> None:
    clients = federation.make_clients()
    server = MetaDNASServer(DARTS(federation.make_supernet()), len(clients))
    for _ in range(federation.ROUNDS):
        server.train_one_round()
    assert not any("alphas_" in name for name in server.public_model_params)
    judged = [server.judge_own_network(client) for client in range(len(clients))]
    federation.report("FL-bench", server.clients_personal_model_params[0], judged)


if __name__ == "__main__":
    main()
