"""FedAvg against plain training with ordinary modules and optimisers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods import FedAvg, FedAvgFineTuned
from metadnas_ext.nn import DerivedNet
from metadnas_ext.search import max_cost_genotype
from metadnas_ext.search.cohort import TrainBatches

from ..federated._tiny import assert_close, assert_identical, tiny_federation

ONE = {"data__clients": 1, "data__unseen": 0.0, "data__max_images": 100}


def plain_training(federation: Federation, net: DerivedNet, client: int, key: str) -> None:
    """One epoch with an ordinary optimiser on the batches the client draws."""
    settings = federation.config.client
    batches = TrainBatches(
        federation.store, [federation.splits[client]], settings.batch_size, 1, True, 0, key
    )
    optimizer: torch.optim.Optimizer
    schedule = None
    if settings.optimizer == "adam":
        optimizer = torch.optim.Adam(
            net.parameters(), settings.lr, weight_decay=settings.weight_decay
        )
    else:
        optimizer = torch.optim.SGD(
            net.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    net.train()
    for _ in range(len(batches)):
        batch = batches.train(1)
        size = int(batch.sizes[0])
        x, y = batch.x[0, :size].permute(0, 3, 1, 2), batch.labels[0, :size]
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), settings.clip)
        optimizer.step()
        if schedule is not None:
            schedule.step()


def module_at(method: FedAvg) -> DerivedNet:
    net = DerivedNet(method.federation.shape, method.genotype)
    net.load_flat(method.theta[None], method.running[None])
    return net


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_one_client_is_plain_local_training(optimizer: str) -> None:
    federation = tiny_federation(**ONE, client__optimizer=optimizer, server__clients_per_round=1)
    method = FedAvg(federation)
    net = module_at(method)
    for index in range(2):
        figures = method.round(index)
        assert figures.clients == [0]
        plain_training(federation, net, 0, f"round {index}")
    # In single precision; Adam divides by second moments near zero, which magnifies rounding.
    tolerance = 1e-6 if optimizer == "sgd" else 2e-5
    assert_close(method.theta, net.flat()[0].detach(), tolerance)
    assert_close(method.running, net.flat_running()[0], tolerance)
    start = FedAvg(federation)
    assert float((start.theta - method.theta).abs().max()) > 0.005


def test_a_round_averages_clients_trained_alone() -> None:
    federation = tiny_federation(client__optimizer="sgd", server__clients_per_round=3)
    method = FedAvg(federation)
    nets = {client: module_at(method) for client in federation.seen}
    figures = method.round(0)
    assert tuple(figures.clients) == federation.seen
    sizes = {client: len(federation.splits[client].train) for client in nets}
    for client, net in nets.items():
        plain_training(federation, net, client, "round 0")
    share = {client: size / sum(sizes.values()) for client, size in sizes.items()}
    for actual, rows in (
        (method.theta, {c: net.flat()[0].detach() for c, net in nets.items()}),
        (method.running, {c: net.flat_running()[0] for c, net in nets.items()}),
    ):
        mean = torch.stack([share[c] * row for c, row in rows.items()]).sum(0)
        assert_close(actual, mean, 1e-5)
        assert float((rows[federation.seen[0]] - mean).abs().max()) > 1e-3


def test_results_are_those_of_the_shared_model() -> None:
    federation = tiny_federation()
    method = FedAvg(federation)
    method.round(0)
    net = module_at(method).eval()
    for result in method.personalise(range(4)):
        for part, accuracy in (("test", result.test_accuracy), ("val", result.val_accuracy)):
            chosen = getattr(federation.splits[result.client], part)
            pixels = federation.store.gather(chosen).float() / 255
            x = (pixels - federation.store.mean[0]) / federation.store.std[0]
            with torch.no_grad():
                hits = net(x.permute(0, 3, 1, 2)).argmax(1) == federation.store.labels[chosen]
            assert accuracy == float(hits.double().mean())
        assert result.kept == "fixed"


def test_architecture_fits_the_tightest_budget() -> None:
    federation = tiny_federation()
    expected = max_cost_genotype(federation.costs, float(federation.budgets.min()))
    method = FedAvg(federation)
    assert method.genotype == method.shared_genotype() == expected
    assert {str(r.genotype) for r in method.personalise([0, 3])} == {str(expected.to_json())}


def test_fine_tuning_starts_from_fedavg_and_gets_the_epochs_of_adaptation() -> None:
    changes = {"personalise__adapt_epochs": 2, "personalise__finetune_epochs": 3}
    federation = tiny_federation(**changes)
    plain, tuned = FedAvg(federation), FedAvgFineTuned(federation)
    for index in range(2):
        assert plain.round(index) == tuned.round(index)
    assert_identical(plain.theta, tuned.theta)
    assert plain.training_key == tuned.training_key
    # As many epochs, divided otherwise: the same networks.
    other = FedAvgFineTuned(
        tiny_federation(personalise__adapt_epochs=5, personalise__finetune_epochs=0)
    )
    other.load_state(tuned.state())
    assert other.personalise(range(4)) == tuned.personalise(range(4))
    assert tuned.personalise(range(4)) != plain.personalise(range(4))
