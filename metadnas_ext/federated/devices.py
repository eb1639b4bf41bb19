"""Device classes over clients: in what each client counts costs, and what it can afford."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from metadnas_ext.config import Config
from metadnas_ext.errors import BudgetError, ConfigError
from metadnas_ext.search.discretize import cheapest_within
from metadnas_ext.seeding import generator
from metadnas_ext.space import (
    COUNTED_UNITS,
    CostTable,
    DeviceProfile,
    Shape,
    cheapest_cost,
    cost_table,
    dearest_cost,
)

ROUNDING = 1e-12
"""Share of a budget that sums of scaled costs may be off by."""


def device_tables(config: Config, shape: Shape) -> tuple[CostTable, ...]:
    """One cost table for each device class. ConfigError names a profile that does not fit."""
    devices = config.budget.devices or (config.budget.unit,)
    return tuple(_table(device, shape) for device in devices)


def assigned_devices(config: Config) -> tuple[int, ...]:
    """The device class of each client: round-robin, or by shares on clients drawn by the seed.

    Shares are met up to rounding (largest remainders). ConfigError unless there is one positive
    share for each device.
    """
    clients, shares = config.data.clients, config.budget.device_shares
    count = max(1, len(config.budget.devices))
    if not shares:
        return tuple(client % count for client in range(clients))
    if len(shares) != count or not all(0 < share < math.inf for share in shares):
        raise ConfigError(
            f"budget.device_shares is {shares}, expected one positive number for each of the "
            f"{count} budget.devices"
        )
    exact = [clients * share / sum(shares) for share in shares]
    whole = [int(number) for number in exact]
    by_remainder = sorted(range(count), key=lambda d: (whole[d] - exact[d], d))
    for device in by_remainder[: clients - sum(whole)]:
        whole[device] += 1
    device_of = [device for device in range(count) for _ in range(whole[device])]
    order = torch.randperm(clients, generator=generator(config.run.seed, "devices")).tolist()
    return tuple(device_of[place] for place in order)


def client_budgets(config: Config, tables: Sequence[CostTable], device_of: Sequence[int]) -> Tensor:
    """Each client's budget in the unit of its device, float64 (clients).

    BudgetError names the first level that no network on a client's device is as cheap as, with as
    few skip connections as `client.max_skips` allows.
    """
    cap = config.client.max_skips
    extremes = [(cheapest_within(table, cap), dearest_cost(table)) for table in tables]
    levels, budgets = config.budget.levels, []
    for client, device in enumerate(device_of):
        given = levels[client % len(levels)]
        cheapest, dearest = extremes[device]
        shared = given <= 1 and not config.budget.absolute
        budget = given * dearest if shared else given
        if budget < cheapest:
            unit, where = tables[device].unit, _device_name(config, device)
            raise BudgetError(_infeasible(given, shared, cheapest, dearest, unit, where))
        budgets.append(budget)
    return torch.tensor(budgets, dtype=torch.float64)


def common_table(
    tables: Sequence[CostTable], device_of: Sequence[int], budgets: Tensor
) -> tuple[CostTable, float]:
    """A table and a budget such that what fits is within the budget of every client.

    With one device class its table and the tightest budget. With several each candidate counts as
    on the device where it takes the largest share of the tightest budget, in the unit of the first
    client's device: safe, but an architecture that only just fits everywhere may be missed.
    BudgetError if that leaves none.
    """
    classes = list(dict.fromkeys(device_of))
    tightest = {
        device: float(budgets[[d == device for d in device_of]].min()) for device in classes
    }
    first = classes[0]
    if len(classes) == 1:
        return tables[first], tightest[first]
    scale = {device: tightest[first] / tightest[device] for device in classes}

    common = replace(
        tables[first],
        cells=torch.stack([tables[d].cells * scale[d] for d in classes]).amax(0),
        fixed=max(tables[d].fixed * scale[d] for d in classes),
    )
    budget = tightest[first] * (1 - ROUNDING)
    if (least := cheapest_cost(common)) > budget:
        raise BudgetError(
            f"budget.levels: no one architecture is sure to fit every device class, as methods "
            f"without a search need; that would take budgets {least / budget:.3g} times as large"
        )
    return common, budget


def _table(device: str, shape: Shape) -> CostTable:
    if device in COUNTED_UNITS:
        return cost_table(shape, device)
    profile = DeviceProfile.load(device)
    try:
        return profile.cost_table(shape)
    except ConfigError as error:
        raise ConfigError(f"budget.devices, {device}: {error}") from None


def _device_name(config: Config, device: int) -> str:
    return config.budget.devices[device] if config.budget.devices else ""


def _infeasible(
    given: float, shared: bool, cheapest: float, dearest: float, unit: str, device: str
) -> str:
    def amount(value: float) -> str:
        return f"{value:.0f} {unit}" if unit in COUNTED_UNITS else f"{value:.4g} {unit}"

    share = f" (a share of {given:g})" if shared else ""
    on = f" on {device}" if device else ""
    return (
        f"budget.levels: {amount(given * dearest if shared else given)}{share} is below the "
        f"cheapest feasible cost of {amount(cheapest)}{on} (a share of {cheapest / dearest:.3f})"
    )
