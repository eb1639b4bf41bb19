"""Device classes: each client counts, searches and is judged on its own device."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metadnas_ext.config import Config
from metadnas_ext.errors import BudgetError, ConfigError
from metadnas_ext.federated.devices import assigned_devices, common_table
from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods import METHODS, MetaDNAS, RandomArchitecture
from metadnas_ext.report.tables import summary
from metadnas_ext.search import max_cost_genotype
from metadnas_ext.search.relaxations import SOFTMAX
from metadnas_ext.space import (
    CohortCosts,
    CostTable,
    DARTSCells,
    DeviceProfile,
    Genotype,
    cheapest_cost,
    cost_table,
    dearest_cost,
    edges,
    genotype_cost,
)
from metadnas_ext.space.latency import all_parts

from ._tiny import METHODS as NAMES
from ._tiny import assert_identical, run_in, tiny_config, tiny_federation


def profile_in(folder: Path, name: str, seed: int) -> Path:
    """A device profile of the tiny networks: random times, convolutions dearer than the rest."""
    shape = tiny_federation().shape
    draw = torch.Generator().manual_seed(seed)
    parts = all_parts(shape)
    factors = (1 + torch.rand(len(parts), generator=draw, dtype=torch.float64)).tolist()
    base = [1.0 if "conv" in part.name else 0.05 for part in parts]
    ms = {p: seed * b * f for p, b, f in zip(parts, base, factors, strict=True)}
    path = folder / f"{name}.json"
    DeviceProfile(shape, 1, 1, 1, {}, {}, "today", ms).save(path)
    return path


def mixed(folder: Path, **changes: Any) -> Federation:
    """Clients 0 and 3 on a phone, 1 on a laptop, 2 counting MACs."""
    devices = (
        str(profile_in(folder, "phone", 1)),
        str(profile_in(folder, "laptop", 2)),
        "macs",
    )
    return Federation.build(tiny_config(budget__devices=devices, **changes))


def test_every_client_has_its_own_table_and_budget(tmp_path: Path) -> None:
    federation = mixed(tmp_path, budget__levels="0.5,0.8")
    shape = federation.shape
    phone, laptop = (
        DeviceProfile.load(tmp_path / f"{name}.json").cost_table(shape)
        for name in ("phone", "laptop")
    )
    expected = [phone, laptop, cost_table(shape), phone]
    for client, (table, level) in enumerate(zip(expected, [0.5, 0.8, 0.5, 0.8], strict=True)):
        own = federation.costs_of(client)
        assert torch.equal(own.cells, table.cells)
        assert (own.unit, own.fixed) == (table.unit, table.fixed)
        assert float(federation.budgets[client]) == level * dearest_cost(table)
    assert [federation.device_name(c) for c in (0, 2)] == [str(tmp_path / "phone.json"), "macs"]
    assert federation.unit is None
    with pytest.raises(ValueError, match="3 cost tables, not one"):
        _ = federation.costs


@pytest.mark.parametrize("name", list(METHODS))
def test_every_client_is_within_its_budget_on_its_device(name: str, tmp_path: Path) -> None:
    federation = mixed(tmp_path, budget__levels="0.5,0.8")
    method = METHODS[name](federation)
    figures = [method.round(index) for index in range(method.rounds)]
    results = method.personalise(range(4))
    for result in results:
        assert result.genotype is not None
        genotype = Genotype.from_json(result.genotype)
        table = federation.costs_of(result.client)
        budget = float(federation.budgets[result.client])
        assert result.cost == genotype_cost(table, genotype) <= budget == result.budget
        assert (result.unit, result.device) == (table.unit, federation.device_name(result.client))
        if result.expected_cost is not None:  # in the client's unit too
            assert cheapest_cost(table) / 2 < result.expected_cost < dearest_cost(table)
    assert summary(results)["violations"] == 0
    for one in figures:
        assert one.expected_cost is None  # no mean of milliseconds and MACs
        assert (one.budget_use is None) == (not isinstance(method, MetaDNAS))


UNEQUAL = {"client__batch_size": 10, "client__alpha_warmup": 1, "client__penalty_kind": "dual"}
"""Clients leave the warm-up of α, and then training, at different steps."""


@pytest.mark.parametrize("changes", [{}, UNEQUAL, UNEQUAL | {"client__order": "single"}])
def test_one_table_under_several_names_is_one_table(changes: dict[str, Any]) -> None:
    """Every tensor and result of a run, to the bit; costs batched over clients or shared."""
    one = tiny_federation(**changes)
    several = Federation.build(tiny_config(budget__devices=("macs", "macs", "macs"), **changes))
    assert isinstance(one.cohort_costs([0, 1]), CostTable)
    assert isinstance(several.cohort_costs([0, 1]), CohortCosts)
    for name in NAMES:
        first, second = (METHODS[name](federation) for federation in (one, several))
        for index in range(first.rounds):
            assert first.round(index) == second.round(index)
        for key, tensor in first.state().items():
            assert_identical(second.state()[key], tensor, key)
        if name != "fedavg":  # as wide a network as fits: a rounding's width less with several
            assert first.personalise(range(4)) == second.personalise(range(4))


def test_a_client_on_another_device_changes_nothing_for_the_rest(tmp_path: Path) -> None:
    """Search and meta-gradient of a client depend on its own table alone."""
    federation = mixed(tmp_path)
    tables = list(federation.tables)
    tables[1] = replace(tables[1], cells=tables[1].cells * 3)
    other = replace(federation, tables=tuple(tables))
    one, two = (MetaDNAS(f) for f in (federation, other))
    first, second = (
        method.search([0, 1, 2, 3], 1, "adapt", "here", None, SOFTMAX)[0] for method in (one, two)
    )
    assert first.clients == second.clients
    for row, client in enumerate(first.clients):
        assert first.alpha is not None
        assert second.alpha is not None
        assert torch.equal(first.alpha[row], second.alpha[row]) == (client != 1)
    alone, _ = two.search([1], 1, "adapt", "here", None, SOFTMAX)
    assert alone.alpha is not None
    assert torch.equal(alone.alpha[0], second.alpha[second.clients.index(1)])


def test_random_architectures_are_drawn_from_each_device_s_own_budget() -> None:
    """Equal budgets, of which networks on the second device take twice as much."""
    federation = tiny_federation()
    own = federation.costs
    dearer = replace(own, cells=own.cells * 2, fixed=own.fixed * 2)
    budgets = torch.full_like(federation.budgets, 1.2 * cheapest_cost(dearer))
    mixed = replace(federation, tables=(own, dearer), device_of=(0, 1, 1, 0), budgets=budgets)
    method = RandomArchitecture(mixed)
    alone = RandomArchitecture(replace(federation, budgets=budgets))
    for client, device in enumerate(mixed.device_of):
        genotype = method.architecture(client)
        assert genotype_cost(mixed.costs_of(client), genotype) <= float(budgets[client])
        assert (genotype == alone.architecture(client)) == (device == 0)


def test_a_run_on_several_devices_from_end_to_end(tmp_path: Path) -> None:
    """Grouping into cohorts does not matter here either."""
    texts = []
    for size in (1, 16):
        federation = mixed(tmp_path, server__cohort=size)
        run_in(tmp_path / str(size), federation, NAMES)
        texts.append((tmp_path / str(size) / "results.json").read_bytes())
    assert texts[0] == texts[1]
    records = json.loads(texts[0])["meta_dnas"]
    assert [record["unit"] for record in records] == ["ms", "ms", "macs", "ms"]
    assert all(record["cost"] <= record["budget"] for record in records)


@pytest.mark.parametrize(
    ("clients", "shares", "expected"),
    [
        (10, (0.7, 0.3), {0: 7, 1: 3}),
        (10, (7.0, 3.0), {0: 7, 1: 3}),
        (10, (1.0, 1.0, 1.0), {0: 4, 1: 3, 2: 3}),
        (3, (0.9, 0.1), {0: 3}),
        (100, (0.335, 0.665), {0: 34, 1: 66}),
        (10, (0.32, 0.68), {0: 3, 1: 7}),
    ],
)
def test_shares_of_devices(
    clients: int, shares: tuple[float, ...], expected: dict[int, int]
) -> None:
    def drawn(seed: int) -> Sequence[int]:
        keys = {"data.clients": clients, "run.seed": seed}
        devices = {"budget.devices": ("macs",) * len(shares), "budget.device_shares": shares}
        return assigned_devices(Config().updated(keys | devices))

    assert Counter(drawn(0)) == expected
    assert drawn(0) == drawn(0)
    if clients == 100:
        assert drawn(0) != drawn(1)


def test_without_shares_devices_go_round() -> None:
    config = Config().updated({"budget.devices": ("macs", "params"), "data.clients": 5})
    assert assigned_devices(config) == (0, 1, 0, 1, 0)
    assert assigned_devices(Config()) == (0,) * 10


@pytest.mark.parametrize(
    "shares", [(1.0,), (0.5, 0.5, 0.5), (1.0, 0.0), (2.0, -1.0), (math.inf, 1.0)]
)
def test_shares_must_fit_the_devices(shares: tuple[float, ...]) -> None:
    keys = {"budget.devices": ("macs", "params"), "budget.device_shares": shares}
    with pytest.raises(ConfigError, match=r"budget\.device_shares is .*each of the 2"):
        assigned_devices(Config().updated(keys))


def test_levels_are_shares_or_units(tmp_path: Path) -> None:
    phone = str(profile_in(tmp_path, "phone", 1))
    table = DeviceProfile.load(phone).cost_table(tiny_federation().shape)
    middle = (cheapest_cost(table) + dearest_cost(table)) / 2
    for absolute, level, expected in (
        (False, 0.9, 0.9 * dearest_cost(table)),
        (False, middle, middle),
        (True, middle, middle),
    ):
        federation = Federation.build(
            tiny_config(
                budget__devices=(phone,), budget__levels=(level,), budget__absolute=absolute
            )
        )
        assert federation.budgets.tolist() == [expected] * 4
    message = rf"0\.9 ms is below the cheapest feasible cost of {cheapest_cost(table):.4g} ms on "
    with pytest.raises(BudgetError, match=message):
        Federation.build(
            tiny_config(budget__devices=(phone,), budget__levels=(0.9,), budget__absolute=True)
        )


def test_profiles_that_do_not_fit_are_named(tmp_path: Path) -> None:
    phone = str(profile_in(tmp_path, "phone", 1))
    with pytest.raises(ConfigError, match=r"phone\.json: .* with channels 4, the networks have 8"):
        Federation.build(tiny_config(budget__devices=(phone,), space__channels=8))
    with pytest.raises(ConfigError, match=r"cannot read the device profile .*none\.json"):
        Federation.build(tiny_config(budget__devices=(str(tmp_path / "none.json"),)))


def test_no_common_architecture_is_an_error_from_the_start(tmp_path: Path) -> None:
    """Each device can do what the other cannot: said before anything is trained."""
    shape = tiny_federation().shape
    tables = []
    for dear in ("conv", "pool"):
        ms = {part: 1.0 if dear in part.name else 0.01 for part in all_parts(shape)}
        ms |= {part: 9.0 for part in ms if part.name == "skip_connect"}
        tables.append(DeviceProfile(shape, 1, 1, 1, {}, {}, "today", ms).cost_table(shape))
    budgets = torch.tensor([2 * cheapest_cost(table) for table in tables], dtype=torch.float64)
    with pytest.raises(BudgetError, match="no one architecture is sure to fit every device"):
        common_table(tables, (0, 1), budgets)


def random_table(seed: int, unit: str) -> CostTable:
    draw = torch.Generator().manual_seed(seed)
    size = (2, len(edges(2)), 3)
    costs = torch.rand(size, generator=draw, dtype=torch.float64) * 10**seed
    return CostTable(unit, costs, 0.2, DARTSCells(2, ("none", "skip_connect", "sep_conv_3x3")))


@pytest.mark.parametrize("seed", range(5))
def test_what_fits_the_common_budget_fits_every_client(seed: int) -> None:
    """The dearest that does; with one device class it is the tightest budget itself."""
    tables = (random_table(seed, "ms"), random_table(seed + 1, "macs"))
    device_of = (0, 1, 1, 0)
    levels = torch.tensor([0.95, 0.9, 1.0, 0.85], dtype=torch.float64)
    dearest = torch.tensor([dearest_cost(tables[d]) for d in device_of], dtype=torch.float64)
    budgets = levels * dearest
    genotype = max_cost_genotype(*common_table(tables, device_of, budgets))
    for client, device in enumerate(device_of):
        assert genotype_cost(tables[device], genotype) <= float(budgets[client])
    only, tightest = common_table(tables, (1, 1), budgets[1:3])
    assert only is tables[1]
    assert tightest == float(budgets[1:3].min())
