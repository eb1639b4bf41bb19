"""Meta-DNAS as a PFLlib pair, under base classes of PFLlib's shape.

In PFLlib itself `Client` and `Server` come from flcore.clients.clientbase and
flcore.servers.serverbase, and its main.py does what `main` does: docs/hosts/pfllib.md.
"""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace

import federation
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader

from metadnas_ext.integrations import pfllib

DATA = [
    (ConcatDataset([data.train, data.held_out]), data.test) for data in federation.make_clients()
]


class Client:
    """The part of PFLlib's client base class that the pair meets."""

    def __init__(self, args, id, train_samples, test_samples, **kwargs):
        self.model = copy.deepcopy(args.model)
        self.device = args.device
        self.id = id
        self.train_samples = train_samples
        self.batch_size = args.batch_size
        self.learning_rate = args.local_learning_rate
        self.local_epochs = args.local_epochs
        self.learning_rate_decay = args.learning_rate_decay
        self.train_time_cost = {"num_rounds": 0, "total_cost": 0.0}

    def load_train_data(self, batch_size=None):
        return DataLoader(DATA[self.id][0], batch_size or self.batch_size, True, drop_last=True)

    def test_metrics(self):
        self.model.eval()
        with torch.no_grad():
            images, labels = next(iter(DataLoader(DATA[self.id][1], len(DATA[self.id][1]))))
            return int((self.model(images).argmax(1) == labels).sum()), len(labels)


class Server:
    """The part of PFLlib's server base class that the pair meets."""

    def __init__(self, args, times):
        self.args = args
        self.global_model = copy.deepcopy(args.model)
        self.global_rounds = args.global_rounds
        self.eval_gap = args.eval_gap
        self.auto_break, self.top_cnt = False, None
        self.num_new_clients, self.eval_new_clients = args.num_new_clients, False
        self.clients, self.new_clients, self.rs_test_acc = [], [], []

    def set_slow_clients(self):
        """PFLlib simulates slow clients; none are here."""

    def set_clients(self, client):
        self.clients = [self._client(client, i) for i in range(self.args.num_clients)]

    def set_new_clients(self, client):
        first = self.args.num_clients
        self.new_clients = [self._client(client, first + i) for i in range(self.num_new_clients)]

    def _client(self, client, i):
        sizes = [len(part) for part in DATA[i]]
        return client(self.args, i, *sizes, train_slow=False, send_slow=False)

    def select_clients(self):
        return random.sample(self.clients, len(self.clients))

    def send_models(self):
        for client in self.clients:
            client.set_parameters(self.global_model)

    def receive_models(self):
        total = sum(client.train_samples for client in self.selected_clients)
        self.uploaded_weights = [c.train_samples / total for c in self.selected_clients]
        self.uploaded_models = [c.model for c in self.selected_clients]

    def evaluate(self):
        judged = self.clients
        if self.eval_new_clients:
            self.fine_tuning_new_clients()
            judged = self.new_clients
        hits, images = zip(*(client.test_metrics() for client in judged), strict=True)
        self.rs_test_acc.append(sum(hits) / sum(images))
        print(f"accuracy {self.rs_test_acc[-1]:.3f}")

    def save_results(self):
        """PFLlib writes HDF5 files."""

    def save_global_model(self):
        """PFLlib pickles the whole model."""
        copy.deepcopy(self.global_model)


def main(num_clients: int = 2, num_new_clients: int = 1) -> None:
    model: nn.Module = federation.make_supernet()
    args = SimpleNamespace(
        model=model,
        device="cpu",
        batch_size=16,
        local_learning_rate=0.05,
        learning_rate_decay=False,
        learning_rate_decay_gamma=0.99,
        local_epochs=1,
        global_rounds=federation.ROUNDS - 1,  # PFLlib runs one more
        eval_gap=1,
        num_clients=num_clients,
        num_new_clients=num_new_clients,
    )
    settings = pfllib.PairSettings(budgets=federation.LEVELS, finetune_epochs=6)
    MetaDNAS = pfllib.server_class(Server, pfllib.client_class(Client, settings))
    server = MetaDNAS(args, 0)
    server.train()
    judged = [
        federation.judge(client.model, data, client.budget)
        for client, data in zip(
            [*server.clients, *server.new_clients], federation.make_clients(), strict=True
        )
    ]
    federation.report("PFLlib", server.global_model.state_dict(), judged)


if __name__ == "__main__":
    random.seed(0)
    main()
