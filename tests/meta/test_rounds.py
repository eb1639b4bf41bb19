"""Whole small federations under every meta-learner and aggregator."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from metadnas_ext.federated import checkpoint
from metadnas_ext.federated.federation import Federation
from metadnas_ext.federated.runner import Silent
from metadnas_ext.meta import LEARNERS
from metadnas_ext.meta.base import LEARNED
from metadnas_ext.methods import MetaDNAS, RoundFigures

from ..federated._tiny import assert_identical, resume_in, run_in, tiny_federation

CASES = [{"server__meta": meta, "server__meta_on": on} for meta in LEARNERS for on in LEARNED]
CASES += [
    {"server__meta": "maml", "server__maml_steps": 2, "client__optimizer": "sgd"},
    {"server__aggregator": "median", "server__meta_on": "w"},
    {"server__aggregator": "trimmed_mean", "server__trim": 0.3},
    {"server__aggregator": "krum", "server__byzantine": 0},
    {"server__aggregator": "multi_krum", "server__select": 2, "server__meta_on": "both"},
    {"server__aggregator": "geometric_median", "server__meta": "reptile"},
    {"server__meta": "maml", "server__meta_on": "both", "server__local": "head,bn"},
    {"server__meta": "reptile", "client__relaxation": "gumbel", "client__alpha_warmup": 1},
    {"server__meta": "maml", "client__relaxation": "gumbel", "client__alpha_warmup": 1},
    {"server__aggregator": "median", "client__relaxation": "sigmoid"},
    {"server__aggregator": "krum", "server__local": "alpha", "server__meta_on": "w"},
    {"server__meta": "maml", "budget__devices": "macs,params", "client__batch_size": 10},
]
MORE = {"server__clients_per_round": 3}
"""All three seen clients in every round."""


def name_of(case: dict[str, Any]) -> str:
    return ", ".join(str(value) for value in case.values())


def after_rounds(
    federation: Federation, restart: bool = False
) -> tuple[MetaDNAS, list[RoundFigures]]:
    """Method and figures after two rounds, the second in a new object if `restart`."""
    method = MetaDNAS(federation)
    figures = [method.round(0)]
    if restart:
        saved = {name: tensor.clone() for name, tensor in method.state().items()}
        method = MetaDNAS(federation)
        method.load_state(saved)
    return method, [*figures, method.round(1)]


@functools.cache
def in_one_cohort(index: int) -> tuple[MetaDNAS, list[RoundFigures]]:
    return after_rounds(tiny_federation(**MORE, **CASES[index], server__cohort=16))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_grouping_and_restart_do_not_change_a_run(case: dict[str, Any]) -> None:
    """To the bit; and everything the server has moves, by what its clients really send."""
    whole, figures = in_one_cohort(CASES.index(case))
    other, again = after_rounds(tiny_federation(**MORE, **case, server__cohort=1), restart=True)
    assert again == figures
    state = whole.state()
    assert other.state().keys() == state.keys()
    for name, tensor in state.items():
        assert_identical(other.state()[name], tensor, name)
    start = MetaDNAS(whole.federation).state()
    for name in ("theta", "running", "alpha"):
        assert float((state[name] - start[name]).abs().max()) > 1e-4, name
    floats = sum(state[name].numel() for name in ("theta", "running", "alpha"))
    floats -= whole.local.numbers
    for one in figures:
        assert one.bytes_up == one.bytes_down == 3 * 4 * floats


def test_meta_learners_and_aggregators_differ() -> None:
    """Each case ends in a state of its own."""
    ends = [in_one_cohort(index)[0].state() for index in range(len(CASES))]
    for i, one in enumerate(ends):
        for other in ends[:i]:
            assert any(not bool((one[n] == other[n]).all()) for n in ("theta", "alpha"))


class Stop(Exception):
    pass


class StopAfterRound(Silent):
    def round_finished(self, *_: Any) -> None:
        raise Stop


def test_a_run_stopped_after_a_round_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """Through checkpoints, the moments of both optimisers included."""
    changes = {"server__meta": "maml", "server__meta_on": "both", "server__aggregator": "median"}
    federation = tiny_federation(**MORE, **changes)
    run_in(tmp_path / "whole", federation, ["meta_dnas"])
    with pytest.raises(Stop):
        run_in(tmp_path / "parts", federation, ["meta_dnas"], StopAfterRound())
    resume_in(tmp_path / "parts", federation, ["meta_dnas"])
    whole, parts = (checkpoint.load_latest(tmp_path / name) for name in ("whole", "parts"))
    assert whole is not None
    assert parts is not None
    assert "meta_dnas/theta_square" in whole.tensors
    assert whole.tensors.keys() == parts.tensors.keys()
    for name, tensor in whole.tensors.items():
        assert_identical(parts.tensors[name], tensor, name)
    for name in ("results.json", "genotypes.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
