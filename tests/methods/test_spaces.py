"""Whole federations in NAS-Bench-201's space, and in DARTS' with a primitive of one's own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metadnas_ext import models
from metadnas_ext.federated.federation import Federation
from metadnas_ext.federated.runner import create_run, load_config
from metadnas_ext.report.build import build_report
from metadnas_ext.report.result import ClientResult
from metadnas_ext.report.study import load_study
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
    assert_grouping_changes_nothing("meta_dnas", space)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in METHODS if name != "meta_dnas"),
        ("meta_dnas", {"server__local": "head,bn,alpha"}),
        (
            "meta_dnas",
            {
                "client__order": "second",
                "client__relaxation": "gdas",
                "client__max_skips": 1,
            },
        ),
        ("meta_dnas", {"client__order": "single", "client__relaxation": "sigmoid"}),
        ("meta_dnas", {"client__relaxation": "gumbel", "client__penalty_kind": "dual"}),
    ],
)
def test_methods_and_variants_in_nasbench201(name: str, changes: dict[str, Any]) -> None:
    """As in DARTS' space: a client's result does not depend on its cohort."""
    results = assert_grouping_changes_nothing(name, {**BENCH, **changes})
    most = changes.get("client__max_skips", 6)
    for result in results:
        assert result.genotype is not None
        assert result.genotype["arch"].count("skip_connect") <= most


def test_eigenvalue_of_alpha_in_nasbench201() -> None:
    more = {"server__clients_per_round": 1, "server__rounds": 1, "server__hessian_every": 1}
    figures = METHODS["meta_dnas"](tiny_federation(**BENCH, **more)).round(0)
    assert figures.hessian_eigenvalue is not None
    assert math.isfinite(figures.hessian_eigenvalue)


def assert_grouping_changes_nothing(name: str, space: dict[str, Any]) -> list[ClientResult]:
    more = {**space, "server__clients_per_round": 3, "server__rounds": 1}
    whole = outcome(name, tiny_federation(**more, server__cohort=16))
    assert_same(outcome(name, tiny_federation(**more, server__cohort=1)), whole)
    return whole[2]


@pytest.mark.slow
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
    written = build_report(load_study(tmp_path / "run"), tmp_path / "report")
    assert any(path.name == "cells_meta_dnas_meta.png" for path in written)
    for name in ("report.md", "report.html"):
        assert "not drawn" not in (tmp_path / "report" / name).read_text()
    assert_networks_are_kept(tmp_path / "run", federation)


def assert_networks_are_kept(run: Path, federation: Federation) -> None:
    """Each loads, and counts the right answers that the results say."""
    results = json.loads((run / "results.json").read_bytes())["meta_dnas"]
    for client, result in enumerate(results):
        net, card = models.load(models.find(run, client, "meta_dnas"))
        assert card.shape == federation.shape
        assert card.genotype.to_json() == result["genotype"]
        assert_predicts(net, federation, client, result["test_accuracy"])


def assert_predicts(net: nn.Module, federation: Federation, client: int, expected: float) -> None:
    store, indices = federation.store, federation.splits[client].test
    pixels = store.gather(indices).float() / 255
    x = ((pixels - torch.tensor(store.mean)) / torch.tensor(store.std)).permute(0, 3, 1, 2)
    found = net(x).argmax(1) == store.labels[indices]
    assert float(found.double().mean()) == pytest.approx(expected)
