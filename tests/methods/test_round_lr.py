"""The rate of w over the rounds: the last round is one at the last rate."""

from __future__ import annotations

from typing import Any

import pytest

from metadnas_ext.errors import ConfigError
from metadnas_ext.methods import METHODS

from ..federated._tiny import assert_identical, tiny_config, tiny_federation

RATES = {"client__lr": 0.04, "client__final_lr": 0.0025, "server__rounds": 3}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("fedavg", {}),
    ("ditto", {}),
    ("per_fedavg", {}),
    ("meta_dnas", {}),
    ("meta_dnas", {"server__search_rounds": 2}),
]


def test_the_rate_falls_geometrically() -> None:
    method = METHODS["fedavg"](tiny_federation(**RATES))
    assert [method.round_lr(i) for i in range(3)] == pytest.approx([0.04, 0.01, 0.0025])


def test_without_a_last_rate_it_stays() -> None:
    method = METHODS["fedavg"](tiny_federation(client__lr=0.04, server__rounds=3))
    assert [method.round_lr(i) for i in range(3)] == [0.04] * 3


def test_one_round_has_the_first_rate() -> None:
    method = METHODS["fedavg"](tiny_federation(**(RATES | {"server__rounds": 1})))
    assert method.round_lr(0) == 0.04


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_the_last_round_trains_at_the_last_rate(name: str, changes: dict[str, Any]) -> None:
    """From one state, to the bit what a run of that rate throughout does in this round."""
    falling = METHODS[name](tiny_federation(**(RATES | changes)))
    for index in range(2):
        falling.round(index)
    rate = falling.round_lr(2)
    constant = METHODS[name](
        tiny_federation(**(RATES | changes | {"client__lr": rate, "client__final_lr": None}))
    )
    constant.load_state({key: value.clone() for key, value in falling.state().items()})
    before = constant.state()["theta"].clone()
    assert falling.round(2) == constant.round(2)
    for key, value in constant.state().items():
        assert_identical(falling.state()[key], value)
    assert not constant.state()["theta"].equal(before)


def test_a_rate_of_zero_cannot_fall() -> None:
    with pytest.raises(ConfigError, match=r"client\.final_lr is 0\.1 and client\.lr 0"):
        tiny_config(client__lr=0.0, client__final_lr=0.1)
