"""Each rival against the same training written with ordinary modules, in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods import (
    Ditto,
    FedAvg,
    FedAvgFineTuned,
    FedAvgHead,
    LocalOnly,
    MetaDNAS,
    PerFedAvg,
    RandomArchitecture,
    SharedAlpha,
    per_fedavg,
)
from metadnas_ext.methods.per_fedavg import meta_train
from metadnas_ext.search import discretize
from metadnas_ext.search.training import Training, cohort_of
from metadnas_ext.space import Genotype

from ..federated._tiny import assert_close, assert_identical, tiny_federation
from . import _plain

CLIENTS = range(4)
PLAIN = {"client__optimizer": "sgd", "client__lr": 0.05, "personalise__finetune_lr": 0.02}
UNEQUAL = PLAIN | {"client__batch_size": 10, "server__clients_per_round": 3}
"""Clients of 2, 3 and 6 batches an epoch."""


def steps(federation: Federation, client: int) -> int:
    return -(-len(federation.splits[client].train) // federation.config.client.batch_size)


def test_clients_have_odd_and_even_numbers_of_batches() -> None:
    federation = tiny_federation(**UNEQUAL)
    assert {steps(federation, c) % 2 for c in federation.seen} == {0, 1}


# --- Ditto


def ditto_by_hand(
    federation: Federation, method: Ditto, rounds: int
) -> tuple[tuple[Tensor, Tensor], dict[int, tuple[Tensor, Tensor]]]:
    """Global rows and personal rows by client after some rounds with all seen clients."""
    client_lr, pull = federation.config.client.lr, federation.config.rivals.ditto_lambda
    shared = (method.theta.double(), method.running.double())
    personal: dict[int, tuple[Tensor, Tensor]] = {}
    for index in range(rounds):
        finished = {}
        for client in federation.seen:
            w = _plain.network(method, *shared)
            v = _plain.network(method, *personal.get(client, shared))
            anchor = [p.detach().clone() for p in w.parameters()]
            drawn = _plain.batches(federation, client, 1, f"round {index}")
            models = (w, v)
            parameters = [list(net.parameters()) for net in models]
            optimizers = [
                _plain.SGD(federation, own, max(len(drawn[turn::2]), 1), client_lr)
                for turn, own in enumerate(parameters)
            ]
            for at, batch in enumerate(drawn):
                turn = at % 2
                grads = _plain.gradients(models[turn], parameters[turn], batch)
                if turn == 1:
                    grads = tuple(
                        g + pull * (p - a)
                        for g, p, a in zip(grads, parameters[turn], anchor, strict=True)
                    )
                optimizers[turn].step(grads)
            finished[client] = _plain.rows(w, method.plan)
            personal[client] = _plain.rows(v, method.plan)
        sizes = {c: len(federation.splits[c].train) for c in finished}
        share = {c: size / sum(sizes.values()) for c, size in sizes.items()}
        shared = tuple(sum(share[c] * r[i] for c, r in finished.items()) for i in range(2))  # type: ignore[assignment]
    return shared, personal


def test_ditto_trains_both_models_in_turn() -> None:
    federation = tiny_federation(**UNEQUAL, rivals__ditto_lambda=2.0)
    method = Ditto(federation)
    shared, personal = ditto_by_hand(federation, Ditto(federation), rounds=2)
    for index in range(2):
        method.round(index)
    assert_close(method.theta, shared[0], 1e-5)
    assert_close(method.running, shared[1], 1e-5)
    state = method.state()
    assert state["personal_known"].tolist() == [1.0] * 3
    for row, client in zip(state["personal_rows"], federation.seen, strict=True):
        assert_close(row, torch.cat(personal[client]), 1e-5)
        assert float((row[: len(method.theta)] - method.theta).abs().max()) > 1e-3


def test_dittos_pull_at_the_end() -> None:
    """A personal model's fine-tuning is drawn towards the last global model."""
    federation = tiny_federation(**UNEQUAL, rivals__ditto_lambda=2.0)
    method = Ditto(federation)
    method.round(0)
    client = federation.seen[0]
    start = method._start([client], final=False).personal
    net = _plain.network(method, start.theta[0], start.running[0])
    parameters = list(net.parameters())
    anchor = list(_plain.network(method, method.theta, method.running).parameters())
    assert float((start.theta[0] - method.theta).abs().max()) > 1e-3
    drawn = _plain.batches(federation, client, 2, "finetune")
    optimizer = _plain.SGD(federation, parameters, len(drawn), 0.02)
    for batch in drawn:
        grads = _plain.gradients(net, parameters, batch)
        optimizer.step(
            tuple(g + 2 * (p - a) for g, p, a in zip(grads, parameters, anchor, strict=True))
        )
    method._tune(method.plan, start, 2, 0.02, "finetune", None)
    assert_close(start.theta[0], _plain.rows(net, method.plan)[0], 1e-5)


def test_ditto_of_a_client_without_a_personal_model_and_without_pull_is_fine_tuning() -> None:
    federation = tiny_federation(rivals__ditto_lambda=0.0, personalise__curve_for="all")
    method, tuned = Ditto(federation), FedAvgFineTuned(federation)
    method.round(0)
    tuned.load_state({name: method.state()[name] for name in ("theta", "running")})
    never = [c for c in CLIENTS if c not in federation.sample(0)]
    assert len(never) == 2
    assert method.personalise(never) == tuned.personalise(never)
    trained = federation.sample(0)
    assert method.personalise(trained) != tuned.personalise(trained)


# --- Per-FedAvg


def meta_by_hand(
    federation: Federation, method: FedAvg, client: int, exact: bool, inner_lr: float
) -> Tensor:
    """A client's parameters (P) after an epoch; `exact`: with MAML's second derivatives."""
    net = _plain.network(method, method.theta, method.running)
    parameters = list(net.parameters())
    names = [name for name, _ in net.named_parameters()]
    drawn = _plain.batches(federation, client, 1, "round 0")
    optimizer = _plain.SGD(federation, parameters, -(-len(drawn) // 2), federation.config.client.lr)

    def loss(at: list[Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = functional_call(net, dict(zip(names, at, strict=True)), (batch[0],))
        return F.cross_entropy(logits, batch[1])

    for at in range(0, len(drawn), 2):
        grads = torch.autograd.grad(loss(parameters, drawn[at]), parameters, create_graph=True)
        if at + 1 < len(drawn):
            used = grads if exact else [g.detach() for g in grads]
            adapted = [p - inner_lr * g for p, g in zip(parameters, used, strict=True)]
            grads = torch.autograd.grad(loss(adapted, drawn[at + 1]), parameters)
        optimizer.step(grads)
    return _plain.rows(net, method.plan)[0]


@pytest.mark.parametrize("exact", [False, True])
def test_per_fedavg_follows_mamls_gradient(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In double precision, where a small step of the finite difference is exact enough: a larger
    one crosses kinks of ReLU, at which autograd sees no curvature."""
    monkeypatch.setattr(per_fedavg, "HESSIAN_STEP", 1e-6)
    federation = tiny_federation(**UNEQUAL)
    method, inner_lr = FedAvg(federation), 0.1
    clients = sorted(federation.seen, key=lambda c: (-steps(federation, c), c))
    cohort = cohort_of(federation.of(clients), method.theta.double(), method.running.double())
    drawn = _plain.train_batches(federation, clients, 1, "round 0")
    how = Training.of(federation.config.client)
    meta_train(method.plan, cohort, drawn, how, inner_lr, exact, "round 0")
    for row, client in enumerate(clients):
        by_hand = meta_by_hand(federation, method, client, exact, inner_lr)
        assert_close(cohort.theta[row], by_hand, 1e-8, f"client {client}")
        other = meta_by_hand(federation, method, client, not exact, inner_lr)
        assert float((other - by_hand).abs().max()) > 1e-4, "the second derivatives matter"


def test_a_round_of_per_fedavg_averages_its_clients() -> None:
    federation = tiny_federation(**UNEQUAL, rivals__per_fedavg_lr=0.1)
    method, start = PerFedAvg(federation), FedAvg(federation)
    method.round(0)
    sizes = torch.tensor([len(federation.splits[c].train) for c in federation.seen]).double()
    each = [meta_by_hand(federation, start, c, False, 0.1) for c in federation.seen]
    assert_close(method.theta, (sizes / sizes.sum()) @ torch.stack(each), 1e-5)


def test_per_fedavg_without_an_inner_step_is_training_on_every_other_batch() -> None:
    federation = tiny_federation(**UNEQUAL, rivals__per_fedavg_lr=0.0)
    method, start = PerFedAvg(federation), FedAvg(federation)
    method.round(0)
    sizes = torch.tensor([len(federation.splits[c].train) for c in federation.seen]).double()
    each = []
    for client in federation.seen:
        net = _plain.network(start, start.theta, start.running)
        drawn = _plain.batches(federation, client, 1, "round 0")
        second = [drawn[min(at + 1, len(drawn) - 1)] for at in range(0, len(drawn), 2)]
        _plain.fit(federation, net, second, federation.config.client.lr)
        each.append(_plain.rows(net, start.plan)[0])
    assert_close(method.theta, (sizes / sizes.sum()) @ torch.stack(each), 1e-5)


# --- Head only, local only


def test_head_only_trains_the_classifier_on_fixed_features() -> None:
    federation = tiny_federation(**UNEQUAL)
    method = FedAvgHead(federation)
    method.round(0)
    for client in federation.seen:
        cohort = method._start([client], final=False)
        net = _plain.network(method, method.theta, method.running).eval()
        drawn = _plain.batches(federation, client, 2, "finetune")
        _plain.fit(federation, net, drawn, 0.02, only="classifier")
        method._tune(method.plan, cohort, 2, 0.02, "finetune", None)
        assert_close(cohort.theta[0], _plain.rows(net, method.plan)[0], 1e-5)
        assert_identical(cohort.running[0], method.running)
        moved = method.plan.parameters.views(cohort.theta[0] != method.theta)
        assert {n.split(".")[0] for n, m in moved.items() if m.any()} == {"classifier"}


@pytest.mark.parametrize("method_class", [FedAvgHead, FedAvgFineTuned, LocalOnly])
def test_results_are_those_of_plain_training(method_class: type[FedAvg]) -> None:
    """From the server's state to the accuracies: training alone, recalibration, fine-tuning."""
    federation = tiny_federation(**UNEQUAL, server__rounds=3, personalise__finetune_epochs=2)
    method = method_class(federation)
    if method.rounds:
        method.round(0)
    only = "classifier" if method_class is FedAvgHead else ""
    for result in method.personalise(CLIENTS):
        client = result.client
        net = _plain.network(method, method.theta, method.running)
        if method_class is LocalOnly:  # 3 rounds of all 3 seen clients, an epoch each
            drawn = _plain.batches(federation, client, 3, "alone")
            _plain.fit(federation, net, drawn, federation.config.client.lr)
        _plain.recalibrate(federation, net, client)
        assert result.discrete_accuracy == _plain.accuracy(federation, net, client, "test")
        net.train(not only)
        drawn = _plain.batches(federation, client, 3, "finetune")  # to adapt and to fine-tune
        _plain.fit(federation, net, drawn, 0.02, only)
        assert result.test_accuracy == _plain.accuracy(federation, net, client, "test")
        assert result.val_accuracy == _plain.accuracy(federation, net, client, "val")
        alone = 3 if method_class is LocalOnly else 0
        assert result.steps == (alone + 3) * steps(federation, client)


# --- Meta-DNAS's rounds without its search


def test_shared_alpha_is_meta_dnas_without_adaptation() -> None:
    """The same rounds; then as many epochs, all of them fine-tuning."""
    federation = tiny_federation(personalise__adapt_epochs=1, personalise__finetune_epochs=2)
    method = SharedAlpha(federation)
    assert method.training_key == MetaDNAS.training_key
    method.round(0)
    other = MetaDNAS(tiny_federation(personalise__adapt_epochs=0, personalise__finetune_epochs=3))
    other.load_state(method.state())
    alpha, federation = method.server.alpha, method.federation
    for own, expected in zip(method.personalise(CLIENTS), other.personalise(CLIENTS), strict=True):
        budget = float(federation.budgets[own.client])
        genotype = discretize((alpha[0], alpha[1]), federation.costs, budget)
        assert own.genotype == genotype.to_json()
        assert own.kept == "meta"
        for figure in ("test_accuracy", "val_accuracy", "discrete_accuracy", "steps", "genotype"):
            assert getattr(own, figure) == getattr(expected, figure), figure


def test_random_architectures_depend_on_seed_and_client_alone() -> None:
    def drawn(**changes: Any) -> list[Genotype]:
        method = RandomArchitecture(tiny_federation(**changes))
        return [method.architecture(client) for client in CLIENTS]

    assert drawn() == drawn(client__alpha_lr=0.3)
    budgets = tiny_federation().budgets
    assert budgets[0] == budgets[2]
    assert drawn()[0] != drawn()[2]
    assert drawn() != drawn(run__seed=1)
    trained = RandomArchitecture(tiny_federation())
    trained.round(0)
    results = trained.personalise(CLIENTS)
    assert [r.genotype for r in results] == [g.to_json() for g in drawn()]
    assert {r.kept for r in results} == {"fixed"}
