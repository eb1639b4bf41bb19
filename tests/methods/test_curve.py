"""Adaptation curves: right, and without a trace in what they measure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods import METHODS, FedAvg, FedAvgFineTuned, LocalOnly, MetaDNAS
from metadnas_ext.methods.searching import Searching
from metadnas_ext.nn import Supernet
from metadnas_ext.report.result import ClientResult
from metadnas_ext.search.relaxations import Softmax
from metadnas_ext.search.training import cohort_of, evaluate

from ..federated._tiny import tiny_federation
from . import _plain

CLIENTS = range(4)
STEPS = {"personalise__curve_steps": "0,1,2,3,4,5,6,7,8,9,10,11,12,999"}


def per_epoch(federation: Federation, client: int) -> int:
    return -(-len(federation.splits[client].train) // federation.config.client.batch_size)


def results(name: str, **changes: Any) -> list[ClientResult]:
    method = METHODS[name](tiny_federation(**changes))
    for index in range(method.rounds):
        method.round(index)
    return method.personalise(CLIENTS)


@pytest.mark.parametrize("name", METHODS)
def test_measuring_changes_nothing(name: str) -> None:
    """To the bit; and every client that is asked for has all points, the last being the end."""
    whole = results(name, personalise__curve_for="all", **STEPS)
    none = results(name, personalise__curve_for="none")
    for result, other in zip(whole, none, strict=True):
        assert replace(result, adaptation=None) == other
        assert result.adaptation is not None
        assert ",".join(result.adaptation) == STEPS["personalise__curve_steps"]
        assert result.adaptation["999"] == result.test_accuracy
        assert result.steps is not None
        for step in range(result.steps, 13):
            assert result.adaptation[str(step)] == result.test_accuracy
    if name not in ("fedavg", "fedavg_head"):
        assert any(len(set((r.adaptation or {}).values())) > 1 for r in whole)


def test_by_default_unseen_clients_at_0_1_5_and_10_steps() -> None:
    unseen = tiny_federation().unseen
    for result in results("fedavg_ft"):
        if result.client in unseen:
            assert list(result.adaptation or {}) == ["0", "1", "5", "10"]
        else:
            assert result.adaptation is None


@pytest.mark.parametrize("alone", [0, 2])
def test_step_by_step(alone: int) -> None:
    """FedAvg + fine-tuning, and training alone for some epochs before, beside the same steps taken
    by an ordinary network."""
    federation = tiny_federation(
        client__optimizer="sgd",
        client__lr=0.1,
        personalise__finetune_lr=0.05,
        personalise__curve_for="all",
        server__rounds=3,
        **STEPS,
    )
    method = LocalOnly(federation) if alone else FedAvgFineTuned(federation)
    plain = FedAvg(federation)
    if not alone:
        method.round(0)
        plain.load_state(method.state())
    for result, untouched in zip(
        method.personalise(CLIENTS), plain.personalise(CLIENTS), strict=True
    ):
        client, curve = result.client, result.adaptation
        assert curve is not None
        assert curve["0"] == untouched.test_accuracy, "the model as it came"
        net = _plain.network(method, method.theta, method.running)
        done = 0
        for key, epochs, lr in (("alone", alone, 0.1), ("finetune", 2, 0.05)):
            if key == "finetune":
                _plain.recalibrate(federation, net, client)
            drawn = _plain.batches(federation, client, epochs, key)
            parameters = list(net.parameters())
            optimizer = _plain.SGD(federation, parameters, max(len(drawn), 1), lr)
            for batch in drawn:
                net.train()
                optimizer.step(_plain.gradients(net, parameters, batch))
                done += 1
                accuracy = _plain.accuracy(federation, net, client, "test")
                assert curve.get(str(done), accuracy) == accuracy, done
        assert done == (alone + 2) * per_epoch(federation, client) == result.steps


def test_step_0_of_meta_dnas_is_the_servers_supernet() -> None:
    federation = tiny_federation(personalise__curve_for="all")
    method = MetaDNAS(federation)
    method.round(0)
    server, shape = method.server, federation.shape
    net = Supernet(
        shape.channels,
        shape.classes,
        shape.layers,
        nodes=shape.nodes,
        image_channels=shape.image_channels,
        image_size=shape.image_size,
    ).eval()
    targets = dict(net.named_parameters()) | dict(net.named_buffers())
    views = method.plan.parameters.views(server.theta) | method.plan.running.views(server.running)
    with torch.no_grad():
        for name, view in views.items():
            targets[name].copy_(view)
        net.alphas_normal.copy_(server.alpha[0])
        net.alphas_reduce.copy_(server.alpha[1])
    for result in method.personalise(CLIENTS):
        assert result.adaptation is not None
        x, y = _plain.part(federation, result.client, "test")
        hits = net(x.float()).argmax(1) == y
        assert result.adaptation["0"] == float(hits.double().mean())


def test_steps_of_the_search_are_those_of_a_shorter_one() -> None:
    """Adam's rate does not change, so two epochs of search start with the one of a shorter run;
    at a temperature of 1, since else it falls more slowly."""
    same = STEPS | {"personalise__curve_for": "all", "personalise__temperature": 1.0}
    long = results("meta_dnas", **same, personalise__adapt_epochs=2)
    short = results("meta_dnas", **same, personalise__adapt_epochs=1)
    federation = tiny_federation()
    for two, one in zip(long, short, strict=True):
        steps = per_epoch(federation, one.client)
        assert two.adaptation is not None
        assert one.adaptation is not None
        assert two.adaptation[str(steps)] == one.adaptation[str(steps)] == one.supernet_accuracy
        assert two.adaptation[str(2 * steps)] == two.supernet_accuracy
        first = [str(step) for step in range(steps + 1)]
        assert [two.adaptation[s] for s in first] == [one.adaptation[s] for s in first]


@pytest.mark.parametrize("name", ["meta_dnas", "darts"])
def test_the_searched_supernet_is_measured_at_the_last_temperature(name: str) -> None:
    """And its expected cost: sharper mixtures, by hand from the cohort that the search left. The
    curve arrives there."""
    federation = tiny_federation(
        personalise__temperature=0.05,
        client__alpha_lr=0.3,
        personalise__adapt_epochs=8,
        personalise__curve_for="all",
        personalise__curve_steps=",".join(map(str, range(1, 50))),
    )
    method = METHODS[name](federation)
    assert isinstance(method, Searching)
    epochs, key, where, pull = 8, "adapt", "personalisation", method._pull()
    if name == "darts":
        epochs, key, where, pull = method.epochs, "alone", "local search", None  # type: ignore[attr-defined]
    cohort, _ = method.search(CLIENTS, epochs, key, where, pull, Softmax(1.0, 0.05))
    assert cohort.alpha is not None
    found = {result.client: result for result in method.personalise(CLIENTS)}
    chances = torch.tensor([1.0, 1.0, 2 / 3, 2 / 3, 2 / 3], dtype=torch.float64)[:, None]
    softer = blunter = 0
    for row, split in enumerate(cohort.splits):
        alpha = cohort.alpha[row] / 0.05
        one = cohort_of([split], cohort.theta[row], cohort.running[row], alpha)
        size = federation.config.client.batch_size
        accuracy = evaluate(method.plan, one, federation.store, "test", size, "").accuracy
        result = found[split.client]
        assert result.supernet_accuracy == float(accuracy)
        assert result.adaptation is not None
        assert result.adaptation[str(epochs * per_epoch(federation, split.client))] == accuracy
        even = replace(one, alpha=one.alpha * 0)
        other = evaluate(method.plan, even, federation.store, "test", size, "").accuracy
        blunter += bool(other != accuracy)
        p = alpha.softmax(-1).double()
        costs = federation.costs
        parts = [(p[i] * chances * t).sum() for i, t in enumerate(costs.cells)]
        assert result.expected_cost == pytest.approx(costs.fixed + float(sum(parts)))
        soft = cohort.alpha[row].softmax(-1).double()
        soft_cost = costs.fixed + float(
            sum((soft[i] * chances * t).sum() for i, t in enumerate(costs.cells))
        )
        softer += result.expected_cost != pytest.approx(soft_cost, rel=1e-3)
    assert softer
    assert blunter
