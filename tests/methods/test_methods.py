"""What holds for every method: results, budgets, unseen clients, determinism, grouping."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods import METHODS, TABLE_1, Method, RoundFigures
from metadnas_ext.report.names import METHOD_NAMES
from metadnas_ext.report.result import ClientResult
from metadnas_ext.space import Genotype, cheapest_cost, dearest_cost, genotype_cost

from ..federated._tiny import assert_identical, tiny_config, tiny_federation

NAMES = list(METHODS)
LOCAL = {"server__local": "head,bn,alpha"}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES),
    ("meta_dnas", LOCAL),
    *((name, {"server__search_rounds": 1}) for name in ("meta_dnas", "random")),
    ("meta_dnas", LOCAL | {"server__search_rounds": 1}),
    ("per_fedavg", {"rivals__per_fedavg_kind": "hessian_free"}),
]
"""Every method, and those settings of one that have a state or sums of their own."""
CLIENTS = range(4)


def trained(name: str, federation: Federation) -> tuple[Method, list[RoundFigures]]:
    method = METHODS[name](federation)
    return method, [method.round(index) for index in range(method.rounds)]


def outcome(
    name: str, federation: Federation
) -> tuple[list[RoundFigures], dict[str, Tensor], list[ClientResult]]:
    """Everything a run of the method leaves, personalised in the federation's cohorts."""
    method, figures = trained(name, federation)
    results: list[ClientResult] = []
    for group in federation.cohorts(range(federation.config.data.clients)):
        results += method.personalise(group)
    return figures, method.state(), results


def assert_same(one: Any, other: Any) -> None:
    """To the bit: figures, state and results of two runs."""
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for key, tensor in one[1].items():
        assert_identical(other[1][key], tensor, key)
    assert one[2] == other[2]
    for mine, theirs in zip(one[2], other[2], strict=True):
        assert_same_weights(mine, theirs)


def assert_same_weights(one: ClientResult, other: ClientResult) -> None:
    assert one.weights is not None
    assert other.weights is not None
    assert list(one.weights) == list(other.weights)
    for name, tensor in one.weights.items():
        assert_identical(other.weights[name], tensor, name)


def with_budgets(federation: Federation, budgets: list[float]) -> Federation:
    return replace(federation, budgets=torch.tensor(budgets, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_one_result_a_client_within_its_budget(name: str) -> None:
    """At the cheapest feasible cost (no architecture is cheaper), in between, and unbound."""
    federation = tiny_federation()
    cheapest, dearest = (f(federation.costs) for f in (cheapest_cost, dearest_cost))
    middle = (cheapest + dearest) / 2
    for budgets in ([cheapest] * 4, [dearest, cheapest, middle, 1.01 * cheapest]):
        method = METHODS[name](with_budgets(federation, budgets))
        results = method.personalise(CLIENTS)
        assert [result.client for result in results] == list(CLIENTS)
        for result, budget in zip(results, budgets, strict=True):
            assert result.genotype is not None
            own = genotype_cost(federation.costs, Genotype.from_json(result.genotype))
            assert result.cost == own <= budget == result.budget
            assert not result.over_budget
            assert result.seen == (result.client in federation.seen)
            split = federation.splits[result.client]
            assert (result.train_size, result.test_size) == (len(split.train), len(split.test))
            for accuracy, size in (
                (result.test_accuracy, len(split.test)),
                (result.val_accuracy, len(split.val)),
            ):
                assert accuracy * size == pytest.approx(round(accuracy * size))


def test_budgets_of_the_configuration() -> None:
    """Levels go round-robin; up to 1 they are shares of the dearest network."""
    federation = tiny_federation(budget__levels="0.5,40000,0.9", budget__unit="macs")
    dearest = dearest_cost(federation.costs)
    assert federation.budgets.tolist() == [0.5 * dearest, 40000, 0.9 * dearest, 0.5 * dearest]
    parameters = tiny_federation(budget__levels="0.7", budget__unit="params")
    assert parameters.costs.unit == "params"
    assert parameters.budgets.tolist() == [0.7 * dearest_cost(parameters.costs)] * 4


def test_unseen_clients_never_take_part() -> None:
    federation = tiny_federation()
    assert len(federation.unseen) == 1
    assert sorted([*federation.seen, *federation.unseen]) == list(CLIENTS)
    sampled = [federation.sample(index) for index in range(50)]
    assert {client for clients in sampled for client in clients} == set(federation.seen)
    for clients in sampled:
        assert len(clients) == len(set(clients)) == 2
        assert clients == sorted(clients)
    assert sampled == [federation.sample(index) for index in range(50)]
    for name in NAMES:
        for figures in trained(name, federation)[1]:
            assert set(figures.clients) <= set(federation.seen)


@pytest.mark.parametrize("name", NAMES)
def test_data_of_unseen_clients_does_not_reach_the_shared_state(name: str) -> None:
    """The unseen client's split is another one: the rounds are the same."""
    federation = tiny_federation()
    (unseen,) = federation.unseen
    splits = list(federation.splits)
    other = splits[federation.seen[0]]
    splits[unseen] = replace(splits[unseen], train=other.val, val=other.test, test=other.train)
    one, two = (trained(name, f) for f in (federation, replace(federation, splits=tuple(splits))))
    assert one[1] == two[1]
    for key, tensor in one[0].state().items():
        assert_identical(two[0].state()[key], tensor, key)


@pytest.mark.parametrize("name", NAMES)
def test_test_images_reach_nothing_but_the_test_accuracy(name: str) -> None:
    federation = tiny_federation()
    splits = tuple(replace(split, test=split.test[:3]) for split in federation.splits)
    one, two = (outcome(name, f) for f in (federation, replace(federation, splits=splits)))
    measured = ("supernet_accuracy", "discrete_accuracy", "adaptation")
    blank = {"test_size": 0, "test_accuracy": 0.0} | dict.fromkeys(measured)
    cleaned = [[replace(result, **blank) for result in run[2]] for run in (one, two)]
    assert_same((*one[:2], cleaned[0]), (*two[:2], cleaned[1]))


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_everything(name: str) -> None:
    """Two federations built from the same configuration, and one of another seed."""
    one, two = (outcome(name, Federation.build(tiny_config())) for _ in range(2))
    assert_same(one, two)
    other = outcome(name, tiny_federation(run__seed=1))
    assert one[2] != other[2]


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_grouping_into_cohorts_does_not_change_a_run(name: str, changes: dict[str, Any]) -> None:
    """Clients one by one, two by two and all at once: the same figures, tensors, architectures and
    accuracies, to the bit. Five a round, of unequal size: sums must not follow the cohorts' order.
    """
    more = {"data__clients": 6, "data__unseen": 0.1, "server__clients_per_round": 5}
    more |= {"personalise__curve_for": "all", **changes}
    whole = outcome(name, tiny_federation(**more, server__cohort=16))
    for size in (1, 2):
        assert_same(outcome(name, tiny_federation(**more, server__cohort=size)), whole)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_clients_does_not_matter(name: str) -> None:
    method, _ = trained(name, tiny_federation())
    forwards = method.personalise([0, 1, 2, 3])
    backwards = method.personalise([3, 2, 1, 0])
    assert forwards == backwards[::-1]


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_goes_on_from_its_state(name: str, changes: dict[str, Any]) -> None:
    federation = tiny_federation(**changes)
    whole, figures = trained(name, federation)
    first = METHODS[name](federation)
    again = [first.round(0)] if first.rounds else []
    saved = {key: tensor.clone() for key, tensor in first.state().items()}
    second = METHODS[name](federation)
    second.load_state(saved)
    again += [second.round(index) for index in range(1, second.rounds)]
    assert_same(
        (figures, whole.state(), whole.personalise(CLIENTS)),
        (again, second.state(), second.personalise(CLIENTS)),
    )


@pytest.mark.parametrize("name", NAMES)
def test_personalisation_leaves_the_state_as_it_is(name: str) -> None:
    method, _ = trained(name, tiny_federation())
    before = {key: tensor.clone() for key, tensor in method.state().items()}
    method.personalise(CLIENTS)
    for key, tensor in before.items():
        assert_identical(method.state()[key], tensor, key)


def test_names_for_people() -> None:
    """In tables of the engine and of reports, which know a method by its name alone; the paper's
    Table 1 first."""
    assert {name: method.title for name, method in METHODS.items()} == METHOD_NAMES
    assert tuple(METHODS)[:4] == TABLE_1 == ("meta_dnas", "fedavg", "fedavg_ft", "darts")


def figures_of(accuracy: float, entropy: float | None) -> RoundFigures:
    return RoundFigures([0], 1.0, 1.0, accuracy, 0, 0, alpha_entropy=entropy)


@pytest.mark.parametrize(
    ("history", "stops"),
    [
        ([(0.5, 1.0)] * 3, True),
        ([(0.5, 1.0)] * 2, False),  # patience needs one round more
        ([(0.1, 2.0), (0.5, 1.0), (0.505, 1.005), (0.501, 1.0)], True),  # only the last three
        ([(0.5, 1.0), (0.52, 1.0), (0.5, 1.0)], False),
        ([(0.5, 1.0), (0.5, 1.02), (0.5, 1.0)], False),
        ([(0.5, None)] * 3, True),
    ],
)
def test_convergence(history: list[tuple[float, float | None]], stops: bool) -> None:
    federation = tiny_federation(server__patience=2, server__tolerance=0.01)
    method = METHODS["fedavg"](federation)
    figures = [figures_of(*values) for values in history]
    assert method.converged(figures) == stops
    assert not METHODS["fedavg"](tiny_federation()).converged(figures * 10)  # patience 0: never
