"""Variants of the local search in whole federations: reproducible, resumable, seen in figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from metadnas_ext.errors import BudgetError, ConfigError
from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods import FedAvg, LocalDARTS, MetaDNAS, RoundFigures
from metadnas_ext.methods.searching import Searching
from metadnas_ext.report.result import ClientResult
from metadnas_ext.search.curvature import alpha_hessian_eigenvalue
from metadnas_ext.search.relaxations import GDAS, SOFTMAX, Softmax
from metadnas_ext.search.training import recalibrate
from metadnas_ext.space import Genotype, genotype_cost

from ..federated._tiny import assert_identical, tiny_config, tiny_federation

CLIENTS = range(4)
VARIANTS: dict[str, dict[str, Any]] = {
    "unrolled gdas": {
        "client__order": "second",
        "client__relaxation": "gdas",
        "client__temperature": 5.0,
        "client__final_temperature": 0.5,
    },
    "single level gumbel, warm-up": {
        "client__order": "single",
        "client__relaxation": "gumbel",
        "client__epochs": 2,
        "client__alpha_warmup": 3,
        "client__alpha_lr": 0.1,
    },
    "sigmoid, capped, eigenvalues": {
        "client__relaxation": "sigmoid",
        "client__max_skips": 1,
        "server__hessian_every": 2,
    },
}


def outcome(
    federation: Federation, cohort: int, reloaded: bool = False
) -> tuple[list[RoundFigures], dict[str, Tensor], list[ClientResult]]:
    """Rounds and personalisation in groups of `cohort`; `reloaded`: a new method after each round,
    as after a crash."""
    method = MetaDNAS(federation)
    figures = []
    for index in range(method.rounds):
        figures.append(method.round(index))
        if reloaded:
            saved = {name: t.clone() for name, t in method.state().items()}
            method = MetaDNAS(federation)
            method.load_state(saved)
    results: list[ClientResult] = []
    for first in range(0, 4, cohort):
        results += method.personalise(list(CLIENTS)[first : first + cohort])
    return figures, method.state(), results


@pytest.mark.parametrize("name", list(VARIANTS))
def test_grouping_and_resuming_change_nothing(name: str) -> None:
    """To the bit: one client at a time and reloaded after every round, or all at once."""
    one = outcome(tiny_federation(**VARIANTS[name], server__cohort=1), 1, reloaded=True)
    all_ = outcome(tiny_federation(**VARIANTS[name]), 4)
    assert one[0] == all_[0]
    for key, tensor in all_[1].items():
        assert_identical(one[1][key], tensor, key)
    assert one[2] == all_[2]
    for figures in one[0]:
        numbers = [v for v in figures.to_json().values() if isinstance(v, float)]
        assert all(math.isfinite(number) for number in numbers)


def test_variants_change_the_search() -> None:
    """Each key reaches the clients: no two settings give the same weights."""
    settings: list[dict[str, Any]] = [
        {},
        {"client__order": "second"},
        {"client__order": "single"},
        {"client__relaxation": "gumbel"},
        {"client__relaxation": "gdas"},
        {"client__relaxation": "sigmoid"},
        {"client__relaxation": "sigmoid", "client__zero_one": 0.0},
        {"client__temperature": 3.0},
        {"client__temperature": 3.0, "client__final_temperature": 0.5},
    ]
    weights: list[Tensor] = []
    for changes in settings:
        method = MetaDNAS(tiny_federation(**changes))
        method.round(0)
        weights.append(method.server.theta)
    for i, one in enumerate(weights):
        for other in weights[:i]:
            assert not torch.equal(one, other)


def test_gumbel_draws_anew_in_every_round() -> None:
    method = MetaDNAS(tiny_federation(client__relaxation="gdas"))
    start = {name: t.clone() for name, t in method.state().items()}
    cohorts = []
    for key in ("round/0", "round/1", "round/0"):
        method.load_state({name: t.clone() for name, t in start.items()})
        alpha = method.server.alpha
        cohorts.append(method.search([0], 1, key, "here", alpha, GDAS())[0])
    assert torch.equal(cohorts[0].theta, cohorts[2].theta)
    assert not torch.equal(cohorts[0].theta, cohorts[1].theta)


def test_running_statistics_behind_a_search_with_draws_are_of_the_mixture() -> None:
    """Those gathered in training are of one candidate an edge; recalibration changes nothing."""
    federation = tiny_federation()
    method = MetaDNAS(federation)
    cohort, _ = method.search([0, 1], 1, "round/0", "here", None, GDAS())
    found = cohort.running.clone()
    recalibrate(method.plan, cohort, federation.store, 16)
    assert_identical(cohort.running, found)


def test_alpha_warmup_counts_local_epochs_over_the_rounds() -> None:
    """Three of four: none of the first round's, and the server waits; the last of the second."""
    method = MetaDNAS(tiny_federation(client__epochs=2, client__alpha_warmup=3))
    start = method.server.alpha.clone()
    method.round(0)
    assert torch.equal(method.server.alpha, start)
    cohort, _ = method.search([0, 1], 2, "round/1", "here", start, SOFTMAX, warmup=1)
    assert cohort.alpha is not None
    assert not torch.equal(cohort.alpha[0], start)
    method.round(1)
    assert not torch.equal(method.server.alpha, start)
    with pytest.raises(ConfigError, match=r"client.alpha_warmup is 4, expected less than the 4"):
        tiny_config(client__epochs=2, client__alpha_warmup=4)


def test_warmup_does_not_count_as_convergence() -> None:
    changes = {"client__alpha_warmup": 3, "server__rounds": 9, "server__patience": 2}
    method = MetaDNAS(tiny_federation(**changes))
    flat = RoundFigures([0], 1.0, 1.0, 0.5, 0, 0, alpha_entropy=1.0)
    assert not method.converged([flat] * 5)
    assert method.converged([flat] * 6)


def test_rounds_behind_the_search_are_not_given_up_for_a_flat_search() -> None:
    changes = {"server__search_rounds": 4, "server__rounds": 9, "server__patience": 2}
    method, federation = MetaDNAS(tiny_federation(**changes)), tiny_federation(**changes)
    searching = RoundFigures([0], 1.0, 1.0, 0.5, 0, 0, alpha_entropy=1.0)
    training = RoundFigures([0], 1.0, 1.0, 0.5, 0, 0)
    assert FedAvg(federation).converged([searching] * 4)
    assert not method.converged([searching] * 4)
    assert not method.converged([searching] * 4 + [training] * 2)
    assert method.converged([searching] * 4 + [training] * 3)


def test_keys_and_temperatures_of_the_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds from 8 to 2, adaptation from 2 to 1; all in one for DARTS per client."""
    changes = {
        "client__temperature": 8.0,
        "client__final_temperature": 2.0,
        "personalise__temperature": 0.5,
    }
    seen: list[Any] = []
    searched = Searching.search

    def search(self: Searching, *args: Any, **named: Any) -> Any:
        seen.append((args[2], args[5]))
        return searched(self, *args, **named)

    monkeypatch.setattr(Searching, "search", search)
    for method in (MetaDNAS(tiny_federation(**changes)), LocalDARTS(tiny_federation(**changes))):
        for index in range(method.rounds):
            method.round(index)
        method.personalise([0])
    assert seen == [
        ("round/0", Softmax(8.0, 4.0)),
        ("round/1", Softmax(4.0, 2.0)),
        ("adapt", Softmax(2.0, 1.0)),
        ("alone", Softmax(8.0, 1.0)),
    ]


def skips(genotype: dict[str, Any] | None) -> list[int]:
    """Of the normal and of the reduction cell."""
    assert genotype is not None
    cells = Genotype.from_json(genotype)
    return [
        sum(name == "skip_connect" for name, _ in pairs) for pairs in (cells.normal, cells.reduce)
    ]


def collapse(method: MetaDNAS) -> None:
    """Makes skip_connect the best candidate everywhere."""
    column = method.federation.shape.candidates.index("skip_connect")
    method.server.alpha[..., column] += 5


@pytest.mark.parametrize("kind", [MetaDNAS, LocalDARTS])
def test_skip_cap_holds_for_every_client_within_its_budget(kind: type[MetaDNAS]) -> None:
    counted = []
    for cap in (None, 1):
        federation = tiny_federation(client__max_skips=cap, client__alpha_lr=0.001)
        method = kind(federation)
        collapse(method)
        results = method.personalise(CLIENTS)
        counted.append([max(skips(result.genotype)) for result in results])
        for result in results:
            assert result.genotype is not None
            own = genotype_cost(federation.costs, Genotype.from_json(result.genotype))
            assert own <= result.budget
    assert min(counted[0]) > 1
    assert max(counted[1]) <= 1


def test_collapse_shows_in_the_figures_of_a_round() -> None:
    """Skips of the server and of its clients, entropies; none of it in a fresh search."""
    before, after = (MetaDNAS(tiny_federation()) for _ in range(2))
    collapse(after)
    fresh, collapsed = before.round(0), after.round(0)
    for figures in (fresh, collapsed):
        assert figures.client_entropy is not None
        assert figures.client_skips is not None
        assert figures.hessian_eigenvalue is None
    assert fresh.client_entropy == pytest.approx(math.log(8), rel=0.01)
    assert collapsed.client_entropy < fresh.client_entropy / 2
    assert collapsed.skips == collapsed.client_skips == 8  # all edges of both cells
    assert fresh.client_skips < 8
    capped = MetaDNAS(tiny_federation(client__max_skips=1))
    collapse(capped)
    figures = capped.round(0)
    assert figures.skips == figures.client_skips == 2


def test_client_figures_are_means_over_the_rounds_clients() -> None:
    federation = tiny_federation(client__alpha_lr=0.3, server__hessian_every=1)
    method = MetaDNAS(federation)
    server = method.server.alpha.clone()
    figures = method.round(0)
    fresh = MetaDNAS(federation)
    entropies, counts, eigenvalues = [], [], []
    for client in figures.clients:
        cohort, _ = fresh.search([client], 1, "round/0", "round 0", server, SOFTMAX)
        assert cohort.alpha is not None
        p = cohort.alpha[0].double().softmax(-1)
        entropies.append(float(-(p * p.log()).sum(-1).mean()))
        genotype = fresh.genotype(cohort.alpha[0], client)
        counts.append(sum(skips(genotype.to_json())))
        eigenvalues += alpha_hessian_eigenvalue(
            *(fresh.plan, cohort, SOFTMAX, federation.store, 16, "here", 0)
        ).tolist()
    assert figures.client_entropy == pytest.approx(mean(entropies), rel=1e-5)
    assert figures.client_skips == mean(counts)
    assert figures.hessian_eigenvalue == mean(eigenvalues)


def test_eigenvalues_every_so_many_rounds() -> None:
    method = MetaDNAS(tiny_federation(server__hessian_every=2, server__rounds=3))
    measured = [method.round(index).hessian_eigenvalue for index in range(3)]
    assert [value is not None for value in measured] == [False, True, False]


def test_budgets_that_only_skips_could_keep_are_refused_at_the_start() -> None:
    """The cheapest architecture of parameters is all pools and skips; here only of skips."""
    candidates = "none,skip_connect,sep_conv_3x3"
    changes = {"space__candidates": candidates, "budget__levels": "0.5"}
    Federation.build(tiny_config(**changes))
    with pytest.raises(BudgetError, match="below the cheapest feasible cost"):
        Federation.build(tiny_config(**changes, client__max_skips=0))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
