"""Rounds behind the search: each client's own network inside the supernet, number by number."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metadnas_ext.errors import ConfigError
from metadnas_ext.methods import METHODS, MetaDNAS, RandomArchitecture, SharedAlpha
from metadnas_ext.methods.derived import train_locally
from metadnas_ext.methods.subnetworks import mean_over_owners
from metadnas_ext.nn import derived_plan, inherit_indices
from metadnas_ext.search import discretize
from metadnas_ext.search.cohort import Cohort

from ..federated._tiny import assert_close, assert_identical, tiny_config, tiny_federation

SETTLED = {
    "server__rounds": 3,
    "server__search_rounds": 2,
    "server__clients_per_round": 3,
    "client__alpha_lr": 0.5,  # α moves: clients end with different architectures
}


def after_the_search(**changes: Any) -> MetaDNAS:
    method = MetaDNAS(tiny_federation(**(SETTLED | changes)))
    for index in range(method.search_rounds):
        method.round(index)
    return method


def test_mean_over_owners() -> None:
    rows = torch.tensor([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]])
    owned = torch.tensor([[True, True, False], [True, False, False]])
    mean = mean_over_owners(rows, owned, torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0, 9.0]))
    assert mean.tolist() == [4.0, 2.0, 9.0]


@pytest.mark.parametrize("local", ["", "head,bn"])
def test_each_number_is_the_mean_over_the_clients_that_train_it(local: str) -> None:
    """Every client trained alone, then one number of the supernet after the other."""
    method = after_the_search(server__local=local)
    federation, plan = method.federation, method.plan
    before = method.server
    sizes, networks = {}, {}
    for client in federation.sample(2):
        genotype = method.architecture(client)
        derived = derived_plan(federation.shape, genotype)
        columns, statistics = inherit_indices(plan, derived, genotype)
        start = method._start([client], final=False)
        own = Cohort(start.splits, start.theta[:, columns], start.running[:, statistics])
        train_locally(federation, derived, own, 1, None, "round 2")
        sizes[client] = len(federation.splits[client].train)
        networks[client] = (
            dict(zip(columns.tolist(), own.theta[0].tolist(), strict=True)),
            dict(zip(statistics.tolist(), own.running[0].tolist(), strict=True)),
        )
    assert len({method.architecture(client) for client in networks}) > 1
    method.round(2)
    stays = method.local.masks(before.theta, before.running)
    for part, (old, new) in enumerate(
        [(before.theta, method.server.theta), (before.running, method.server.running)]
    ):
        expected = old.tolist()
        for column in range(len(expected)):
            owners = [c for c in networks if column in networks[c][part]]
            if owners:
                total = sum(sizes[c] for c in owners)
                expected[column] = sum(sizes[c] * networks[c][part][column] for c in owners) / total
        shared = ~stays[part]  # of local parts the mean is over all clients
        if shared.any():
            assert_close(new[shared], torch.tensor(expected)[shared], 1e-6)
    assert not torch.equal(method.server.theta, before.theta)
    assert_identical(method.server.alpha, before.alpha)


@pytest.mark.parametrize("local", ["", "alpha"])
def test_a_client_settles_by_its_last_search_and_what_the_server_learned_since(local: str) -> None:
    """A client's own α, if it keeps one, needs no server's."""
    changes = SETTLED | {"server__clients_per_round": 2, "server__local": local}
    method = MetaDNAS(tiny_federation(**changes))
    expected = {}
    for index in range(2):
        sent = method.server.alpha.clone()
        for client in method.federation.sample(index):
            where = f"round {index}"
            cohort, _ = method.search(
                [client], 1, f"round/{index}", where, method._pull(), method.relaxation(index)
            )
            assert cohort.alpha is not None
            expected[client] = cohort.alpha[0] if local else cohort.alpha[0] - sent
        method.round(index)
    if not local:
        expected = {client: method.server.alpha + moved for client, moved in expected.items()}
    assert len(expected) > len(method.federation.sample(1))  # one has missed the last search
    settled = {client: method.architecture(client) for client in expected}
    assert settled == {client: method.genotype(a, client) for client, a in expected.items()}
    method.round(2)
    assert {client: method.architecture(client) for client in expected} == settled
    (unseen,) = method.federation.unseen
    budget = float(method.federation.budgets[unseen])
    servers = discretize(tuple(method.server.alpha), method.federation.costs, budget)
    assert method.architecture(unseen) == servers


def test_a_settled_client_searches_no_more() -> None:
    method = after_the_search(personalise__gate=False, server__rounds=2)
    for result in method.personalise(range(4)):
        settled = result.client in method.federation.seen
        assert (result.supernet_accuracy is None) == settled
        if settled:
            assert result.genotype == method.architecture(result.client).to_json()


def test_a_settled_client_falls_back_on_its_own_architecture() -> None:
    method = after_the_search()
    (unseen,) = method.federation.unseen
    for client in range(4):
        model = method.fallback(client)
        assert model.genotype == method.architecture(client)
        assert model.kept == ("meta" if client == unseen else "personal")


def test_a_round_that_everybody_is_lost_in_sent_networks_all_the_same() -> None:
    whole, lost = after_the_search(), after_the_search()
    sent = whole.round(2).bytes_down
    lost.server.theta[:] = torch.nan
    figures = lost.round(2)
    assert figures.lost
    assert (figures.bytes_up, figures.bytes_down) == (0, sent)


def test_the_state_is_all_there_is() -> None:
    whole, first = after_the_search(), after_the_search()
    resumed = MetaDNAS(whole.federation)
    resumed.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    assert whole.round(2) == resumed.round(2)
    for name, tensor in whole.state().items():
        assert_identical(resumed.state()[name], tensor, name)
    assert whole.personalise(range(4)) == resumed.personalise(range(4))


@pytest.mark.parametrize("local", ["", "head"])
def test_only_the_network_is_sent(local: str) -> None:
    method = after_the_search(server__local=local)
    numbers = 0
    for client in method.federation.sample(2):
        derived = derived_plan(method.federation.shape, method.architecture(client))
        numbers += derived.parameters.size + derived.running.size
        if local:
            numbers -= sum(
                slot.end - slot.offset
                for name, slot in derived.parameters.slots.items()
                if name.startswith("classifier")
            )
    figures = method.round(2)
    assert figures.bytes_up == figures.bytes_down == 4 * numbers


def test_rivals_train_their_own_architectures_in_these_rounds() -> None:
    config = tiny_config(**SETTLED)
    keys = {cls.trains_as(config) for cls in (MetaDNAS, SharedAlpha, RandomArchitecture)}
    assert keys == {"meta_dnas", "shared_alpha", "random"}
    assert {METHODS[key].trains_as(tiny_config()) for key in keys} == {"meta_dnas"}
    federation = tiny_federation(**SETTLED)
    states = []
    for cls in (MetaDNAS, SharedAlpha, RandomArchitecture):
        method = cls(federation)
        for index in range(3):
            method.round(index)
        states.append(method.server)
    assert torch.equal(states[0].alpha, states[1].alpha)
    assert torch.equal(states[0].alpha, states[2].alpha)
    assert not torch.equal(states[0].theta, states[1].theta)
    assert not torch.equal(states[0].theta, states[2].theta)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"server__aggregator": "median"}, "server.aggregator is 'median', expected mean with"),
        ({"server__meta_on": "both"}, "server.meta_on is 'both', expected alpha with"),
    ],
)
def test_what_sub_networks_cannot_share(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(**(SETTLED | changes))
