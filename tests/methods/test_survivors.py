"""A client whose numbers are not finite is dropped and named; all others are as without it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from metadnas_ext.errors import DivergenceError
from metadnas_ext.federated.federation import Federation
from metadnas_ext.meta import FOMAML
from metadnas_ext.methods import (
    METHODS,
    Ditto,
    FedAvg,
    FedAvgFineTuned,
    FedPer,
    MetaDNAS,
    Method,
    RandomArchitecture,
    SharedAlpha,
    derived,
    ditto,
    fedavg_head,
    per_fedavg,
    searching,
)
from metadnas_ext.methods.derived import local_batches
from metadnas_ext.methods.survivors import personalised, without_diverged
from metadnas_ext.report.result import ClientResult

from ..federated._tiny import assert_identical, tiny_federation
from ..search._clients import adapted, client_config, fresh_cohort

ROUNDS = {"data__clients": 6, "data__unseen": 0.1, "server__clients_per_round": 5}
"""Five clients a round, all that are seen."""
HUGE_RATE = {"client__lr": 1e30, "client__clip": 0, "client__batch_size": 256}


def poison(
    monkeypatch: pytest.MonkeyPatch, clients: Sequence[int], what: str, phase: str = ""
) -> None:
    """One number of these clients' state is NaN before they train, as after a flipped bit.

    `what`: "theta", "running", "alpha", or "personal" for Ditto's other model. `phase`: in that one
    only.
    """

    def poisoned(federation, cohort, epochs, key):
        for row, client in enumerate(cohort.clients):
            tensor = cohort.personal.theta if what == "personal" else getattr(cohort, what)
            if client in clients and tensor is not None and phase in ("", key):
                tensor[row].view(-1)[-1] = math.nan
        return local_batches(federation, cohort, epochs, key)

    for module in (derived, ditto, fedavg_head, per_fedavg, searching):
        monkeypatch.setattr(module, "local_batches", poisoned)


def without(federation: Federation, clients: Sequence[int]) -> Federation:
    """The federation in which these clients never take part."""
    return replace(federation, seen=tuple(c for c in federation.seen if c not in clients))


def states(method: Method, clients: Sequence[int]) -> dict[str, torch.Tensor]:
    """The method's state, of what stays on clients that of `clients`."""
    seen = method.federation.seen
    rows = torch.tensor([seen.index(client) for client in clients])
    own = ("_rows", "_known")
    return {k: t[rows] if k.endswith(own) else t for k, t in method.state().items()}


STATISTICS = "update of the running statistics is nan"


@pytest.mark.parametrize("cohort", [1, 2, 16])
@pytest.mark.parametrize(
    ("name", "what", "reason", "changes"),
    [
        ("meta_dnas", "theta", "loss is nan", {}),
        ("meta_dnas", "alpha", "loss is nan", {}),
        ("meta_dnas", "running", STATISTICS, {}),  # no loss shows it
        ("meta_dnas", "theta", "loss is nan", {"client__order": "single"}),
        ("meta_dnas", "alpha", "loss is nan", {"client__order": "second"}),
        ("meta_dnas", "theta", "loss is nan", {"client__relaxation": "gumbel"}),
        ("meta_dnas", "theta", "loss is nan", {"server__local": "bn,head,alpha"}),
        ("meta_dnas", "theta", "loss is nan", {"server__hessian_every": 1}),
        ("meta_dnas", "theta", "loss is nan", {"server__meta": "maml", "server__meta_on": "both"}),
        ("meta_dnas", "running", STATISTICS, {"server__meta": "reptile"}),
        ("meta_dnas", "alpha", "loss is nan", {"server__aggregator": "krum"}),
        ("fedavg", "theta", "loss is nan", {}),
        ("fedavg", "running", STATISTICS, {}),
        ("fedper", "theta", "loss is nan", {}),
        ("per_fedavg", "theta", "loss is nan", {}),
        ("per_fedavg", "running", STATISTICS, {"rivals__per_fedavg_kind": "hessian_free"}),
        ("ditto", "theta", "loss is nan", {}),
        ("ditto", "running", STATISTICS, {}),
        ("ditto", "personal", "update of w is nan", {"client__batch_size": 256}),
        ("ditto", "personal", "loss is nan", {"client__batch_size": 4}),
    ],
)
def test_a_round_is_that_of_the_other_clients(
    name: str,
    what: str,
    reason: str,
    changes: dict[str, Any],
    cohort: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    federation = tiny_federation(**ROUNDS, server__cohort=cohort, **changes)
    bad = [federation.seen[1], federation.seen[3]]
    expected = METHODS[name](without(federation, bad))
    others = expected.round(0)
    poison(monkeypatch, bad, what)
    method = METHODS[name](federation)
    figures = method.round(0)
    assert figures.dropped == [{"client": client, "reason": reason} for client in bad]
    assert figures.clients == list(federation.seen)
    assert not figures.lost
    left = states(expected, expected.federation.seen)
    for key, tensor in states(method, expected.federation.seen).items():
        assert_identical(tensor, left[key], key)
    changed = {"clients": others.clients, "dropped": [], "bytes_down": others.bytes_down}
    assert replace(figures, **changed) == others
    assert figures.bytes_down == others.bytes_down // 3 * 5  # all were sent the model
    assert figures.bytes_up == others.bytes_down


@pytest.mark.parametrize("name", ["meta_dnas", "fedavg", "ditto"])
def test_a_round_without_survivors_leaves_the_state_as_it_is(name: str) -> None:
    federation = tiny_federation(**HUGE_RATE)
    method = METHODS[name](federation)
    before = {key: tensor.clone() for key, tensor in method.state().items()}
    figures = method.round(0)
    assert figures.lost
    assert [one["client"] for one in figures.dropped] == figures.clients
    assert all(math.isfinite(v) for v in figures.to_json().values() if isinstance(v, float))
    assert figures.bytes_up == 0 < figures.bytes_down
    for key, tensor in before.items():
        assert_identical(method.state()[key], tensor, key)
    assert json.loads(json.dumps(figures.to_json(), allow_nan=False))["val_accuracy"] is None
    assert not method.converged([figures] * 9)


def test_a_penalty_that_overflows_drops_its_client() -> None:
    """A budget of next to nothing: the client's own loss is infinite, with nothing injected."""
    federation = tiny_federation()
    bad = federation.sample(0)[1]
    budgets = federation.budgets.clone()
    budgets[bad] = 1e-320
    figures = MetaDNAS(replace(federation, budgets=budgets)).round(0)
    assert figures.dropped == [{"client": bad, "reason": "loss is inf"}]


def test_a_meta_gradient_that_is_not_finite_names_its_client() -> None:
    """The validation loss is: the penalty enters only as a gradient."""
    origin = adapted(fresh_cohort([0, 1, 3], torch.float32), client_config())
    budgets = origin.budgets.clone()
    budgets[origin.cohort.clients.index(1)] = 1e-320
    message = "round 1: the meta-gradient of client 1 is"
    with pytest.raises(DivergenceError, match=message) as caught:
        FOMAML("alpha")(replace(origin, budgets=budgets))
    assert list(caught.value.diverged) == [1]


@pytest.mark.parametrize("name", list(METHODS))
def test_personalisation_falls_back_for_one_client(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others' results are what they are; its own says why."""
    federation = tiny_federation()
    method = METHODS[name](federation)
    expected = {result.client: result for result in personalised(method, range(4))}
    poison(monkeypatch, [2], "theta")
    for groups in ([[0, 1, 2, 3]], [[3, 2], [1, 0]]):
        results = [result for group in groups for result in personalised(method, group)]
        for result in results:
            if result.client != 2:
                assert result == expected[result.client]
                assert result.diverged is None
            else:
                assert result.diverged in ("loss is nan", "update of w is nan")
                assert not result.over_budget
                restored = ClientResult.from_json(json.loads(json.dumps(result.to_json())))
                assert restored.to_json() == result.to_json()


class FedPerAsItIs(FedPer):
    finetuned = False


@pytest.mark.parametrize(
    ("plain_class", "tuned_class"), [(FedAvg, FedAvgFineTuned), (FedPerAsItIs, FedPer)]
)
def test_the_fallback_of_fine_tuning_is_fedavg(
    plain_class: type[FedAvg], tuned_class: type[FedAvg], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the parts that have stayed on the client."""
    federation = tiny_federation()
    plain, tuned = plain_class(federation), tuned_class(federation)
    for method in (plain, tuned):
        method.round(0)
    client = federation.sample(0)[0]
    (expected,) = plain.personalise([client])
    poison(monkeypatch, [client], "theta", "finetune")
    (result,) = personalised(tuned, [client])
    assert result.diverged is not None
    assert replace(result, diverged=None) == expected
    assert result.weights is not None
    assert expected.weights is not None
    for key, tensor in expected.weights.items():
        assert_identical(result.weights[key], tensor, key)


def test_the_fallback_of_ditto_is_the_personal_model(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Ditto(tiny_federation())
    method.round(0)
    client = method.federation.sample(0)[0]
    own = method._start([client], final=False).personal.theta[0].clone()
    assert not torch.equal(own, method.theta)
    assert_identical(method.fallback(client).theta, own)
    poison(monkeypatch, [client], "theta", "finetune")
    (result,) = personalised(method, [client])
    assert result.diverged is not None
    assert result.weights is not None
    for name, tensor in method.plan.parameters.views(own).items():
        assert_identical(result.weights[name], tensor, name)


def test_the_fallback_of_meta_dnas_is_the_meta_architecture_untrained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The curve aside: it starts from what is trained, and nothing is."""
    changes = {"server__local": "bn", "personalise__curve_for": "none"}
    method = MetaDNAS(tiny_federation(**changes))
    method.round(0)
    none = {"personalise__adapt_epochs": 0, "personalise__finetune_epochs": 0}
    untrained = MetaDNAS(tiny_federation(**none, **changes, personalise__gate=False))
    untrained.load_state(method.state())
    for phase in ("adapt", "finetune"):
        with monkeypatch.context() as patch:
            poison(patch, [0, 3], "theta", phase)
            results = personalised(method, range(4))
        assert [r.client for r in results if r.diverged is not None] == [0, 3]
        for result in results:
            if result.diverged is not None:
                (expected,) = untrained.personalise([result.client])
                # Of a search, which there was not.
                expected = replace(expected, supernet_accuracy=None, expected_cost=None)
                assert replace(result, diverged=None, kept="personal") == expected
                assert result.kept == "meta"


@pytest.mark.parametrize("method_class", [SharedAlpha, RandomArchitecture])
def test_without_a_search_the_fallback_is_what_would_have_been_trained(
    method_class: type[SharedAlpha], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = method_class(tiny_federation())
    method.round(0)
    trained = {result.client: result for result in method.personalise(range(4))}
    poison(monkeypatch, [1, 2], "theta", "finetune")
    for result in personalised(method, range(4)):
        before = trained[result.client]
        assert (result.genotype, result.kept) == (before.genotype, before.kept)
        assert (result.diverged is None) == (result.client in (0, 3))
        if result.diverged is not None:
            assert result.test_accuracy == before.discrete_accuracy
            assert result.steps == 0


def test_a_curve_of_a_client_that_diverged_is_that_of_no_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A curve that began before the client diverged is not gone on with."""
    method = FedAvgFineTuned(tiny_federation(personalise__curve_for="all"))
    poison(monkeypatch, [2], "theta", "finetune")
    (result,) = personalised(method, [2])
    assert result.adaptation == dict.fromkeys(["0", "1", "5", "10"], result.test_accuracy)


def test_a_model_that_cannot_even_be_evaluated_has_no_accuracy() -> None:
    method = FedAvg(tiny_federation())
    method.load_state({name: tensor * math.nan for name, tensor in method.state().items()})
    results = personalised(method, range(4))
    assert [result.client for result in results] == [0, 1, 2, 3]
    for result in results:
        assert math.isnan(result.test_accuracy)
        assert result.to_json()["val_accuracy"] is None
        assert result.diverged == "loss is nan"
        assert not result.weights  # nothing to keep


def test_groups_run_again_until_all_that_are_left_finish() -> None:
    calls = []

    def run(group: list[int]) -> list[int]:
        calls.append(group)
        for bad in (4, 1):  # found one after the other
            if bad in group:
                raise DivergenceError("", {bad: f"reason {bad}"})
        return group

    finished, dropped = without_diverged([[0, 1], [2, 3, 4], [1]], run)
    assert (finished, dropped) == ([[0], [2, 3]], {1: "reason 1", 4: "reason 4"})
    assert list(dropped) == [1, 4]
    assert calls == [[0, 1], [0], [2, 3, 4], [2, 3], [1]]


@pytest.mark.parametrize("diverged", [{}, {7: "of another group"}])
def test_an_error_of_no_client_of_the_group_is_not_swallowed(diverged: dict[int, str]) -> None:
    def run(group: list[int]) -> None:
        raise DivergenceError("somewhere", diverged)

    with pytest.raises(DivergenceError, match="somewhere"):
        without_diverged([[0, 1]], run)


def test_all_clients_that_diverge_at_once_are_named() -> None:
    """One rerun for all of them, and reasons that do not depend on the grouping."""
    federation = tiny_federation(**ROUNDS, **HUGE_RATE, server__cohort=16)
    calls = []

    def run(group: list[int]) -> None:
        calls.append(group)
        FedAvg(federation).work(0, group)

    _, together = without_diverged([list(federation.seen)], run)
    assert len(calls) < len(federation.seen)
    _, alone = without_diverged([[client] for client in federation.seen], run)
    assert together == alone
    assert torch.equal(torch.tensor(list(together)), torch.tensor(federation.seen))


@pytest.mark.parametrize("settled", [False, True])
def test_a_rival_that_diverges_loses_at_the_gate(
    settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client keeps its own network, which has done nothing wrong."""
    changes: dict[str, Any] = {"client__alpha_lr": 0.5, "personalise__finetune_epochs": 2}
    if settled:
        changes |= {"server__search_rounds": 1, "server__clients_per_round": 3}
    with_gate, ungated = (
        MetaDNAS(tiny_federation(**changes, personalise__gate=gate)) for gate in (True, False)
    )
    for method in (with_gate, ungated):
        method.round(0)
    alone = ungated.personalise(range(4))
    differing = {
        one.client
        for one in alone
        if one.genotype != with_gate.genotype(with_gate.server.alpha, one.client).to_json()
    }
    assert differing
    bad, finetune = min(differing), derived.finetune

    def spoilt(federation, genotypes, start, *args, **kwargs):
        own = genotypes.get(bad)
        if own is not None and own.to_json() != alone[bad].genotype:
            start[bad][0][-1] = math.nan
        return finetune(federation, genotypes, start, *args, **kwargs)

    monkeypatch.setattr(searching, "finetune", spoilt)
    results = personalised(with_gate, range(4))
    assert results[bad] == alone[bad]
    assert results[bad].diverged is None
    monkeypatch.setattr(searching, "finetune", finetune)
    for undisturbed, result in zip(personalised(with_gate, range(4)), results, strict=True):
        assert undisturbed == result or result.client == bad
