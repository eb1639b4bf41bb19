"""Whole federations in NAS-Bench-201's space, and in DARTS' with a primitive of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metadnas_ext.federated.federation import Federation
from metadnas_ext.federated.runner import create_run, load_config
from metadnas_ext.report.build import build_report
from metadnas_ext.space import NASBench201Genotype, architecture_from_json, genotype_cost

from .. import _primitives  # noqa: F401  # registers
from ..federated._tiny import resume_in, run_in, tiny_config, tiny_federation
from ..federated.test_runner import Interrupt, Killed, assert_same_end
from .test_methods import CLIENTS, METHODS, assert_same, outcome

BENCH = {
    "space__space": "nasbench201",
    "space__layers": 3,
    "space__nodes": 4,
    "budget__levels": "0.25,0.5",
}
OWN = {
    "space__candidates": "none,squeeze_excite,skip_connect,dil_conv_3x3",
    "budget__levels": "0.6,0.8",
}
PARTIAL = {"space__channels": 8, "space__partial": 4, "budget__levels": "0.8,0.9"}
SPACES = pytest.mark.parametrize(
    "space", [BENCH, OWN, PARTIAL], ids=["nasbench201", "own", "partial"]
)


@SPACES
@pytest.mark.parametrize("name", METHODS)
def test_one_result_a_client_within_its_budget(name: str, space: dict[str, Any]) -> None:
    federation = tiny_federation(**space)
    results = METHODS[name](federation).personalise(CLIENTS)
    for result in results:
        assert result.genotype is not None
        architecture = architecture_from_json(result.genotype)
        assert isinstance(architecture, NASBench201Genotype) == (space is BENCH)
        assert result.cost == genotype_cost(federation.costs, architecture) <= result.budget


@SPACES
def test_grouping_into_cohorts_does_not_change_a_run(space: dict[str, Any]) -> None:
    """Alone and all at once: the same figures, tensors, architectures and accuracies to the bit."""
    more = {**space, "server__clients_per_round": 3, "server__rounds": 1}
    whole = outcome("meta_dnas", tiny_federation(**more, server__cohort=16))
    assert_same(outcome("meta_dnas", tiny_federation(**more, server__cohort=1)), whole)


@SPACES
def test_interrupted_runs_end_alike_and_are_reported(space: dict[str, Any], tmp_path: Path) -> None:
    """Stopped after every commit and resumed; then a report that draws its cells."""
    federation = Federation.build(tiny_config(**space, server__rounds=1))
    names = ["meta_dnas", "fedavg"]
    run_in(tmp_path / "whole", federation, names)
    create_run(tmp_path / "run", federation.config, names)
    for _ in range(20):
        try:
            resume_in(tmp_path / "run", federation, names, Interrupt(1))
            break
        except Killed:
            continue
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    assert load_config(tmp_path / "run")[0] == federation.config
    written = build_report(tmp_path / "run")
    assert any(path.name == "cells_meta_dnas_meta.png" for path in written)
    assert "not drawn" not in (tmp_path / "run" / "report" / "report.md").read_text()
