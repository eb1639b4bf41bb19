"""Whole runs on a GPU: on a pretended one everywhere, on a real one where there is one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from metadnas_ext import placement
from metadnas_ext.data import MemoryStore
from metadnas_ext.errors import ConfigError
from metadnas_ext.federated.federation import Federation
from metadnas_ext.federated.runner import Runner, Silent, create_run
from metadnas_ext.methods import METHODS, Method
from metadnas_ext.methods.fedavg import FedAvg
from metadnas_ext.methods.searching import Searching
from metadnas_ext.search import training
from metadnas_ext.search.graphs import EagerReplay, GraphedStep, Inputs, Passes
from metadnas_ext.search.relaxations import relaxation_of
from metadnas_ext.search.steps import Pass

from .._pretend_gpu import GPU, PretendGPU
from ..federated._tiny import (
    assert_close,
    assert_identical,
    events,
    resume_in,
    run_in,
    tiny_config,
    tiny_federation,
)

SHORT = {"server__rounds": 1}
RAGGED = {"data__dirichlet": 0.2, "client__batch_size": 7, "server__clients_per_round": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "unequal clients": RAGGED,
    "second order": RAGGED | {"client__order": "second", "client__optimizer": "sgd"},
    "single level": {"client__order": "single", "client__alpha_warmup": 1, "client__epochs": 2},
    "gumbel": {"client__relaxation": "gumbel", "client__final_temperature": 0.2},
    "gdas": {"client__relaxation": "gdas"},
    "sigmoid": RAGGED | {"client__relaxation": "sigmoid", "client__final_temperature": 0.5},
    "dual ascent, two kinds of devices": {
        "client__penalty_kind": "dual",
        "budget__devices": ("macs", "params"),
    },
    "reptile, geometric median": {
        "server__meta": "reptile",
        "server__meta_on": "both",
        "server__aggregator": "geometric_median",
    },
    "maml": RAGGED | {"server__meta": "maml", "server__meta_on": "w"},
    "median": {"server__aggregator": "median"},
    "multi-krum": {"server__aggregator": "multi_krum", "server__clients_per_round": 3},
    "local parts": {"server__local": ("head", "bn", "alpha"), "server__hessian_every": 1},
    "sub-networks": RAGGED
    | {"server__rounds": 2, "server__search_rounds": 1, "server__local": ("bn",)},
    "partial channels": {"space__partial": 2, "budget__levels": (0.6,)},
    "nasbench201": RAGGED
    | {"space__space": "nasbench201", "space__layers": 3, "space__nodes": 4}
    | {"data__max_images": 120},
}


def moved(federation: Federation) -> Federation:
    """The same on the GPU."""
    assert isinstance(federation.store, MemoryStore)
    return replace(federation, store=federation.store.to(GPU), device=GPU)


def outcome(method: Method) -> tuple[dict[str, Tensor], list[float]]:
    """State after all rounds, and the figures of rounds and of two clients, one of them unseen."""
    rounds = [method.round(index) for index in range(method.rounds)]
    state = {name: tensor.cpu() for name, tensor in method.state().items()}
    clients = [method.federation.seen[0], *method.federation.unseen]
    results = method.personalise(clients)
    assert all(weight.is_cpu for result in results for weight in result.weights.values())
    figures = [value for r in rounds for value in (r.train_loss, r.val_loss, r.budget_use) if value]
    return state, figures + [result.test_accuracy for result in results]


@pytest.mark.parametrize(
    ("name", "changes"),
    [(name, {}) for name in METHODS] + [("meta_dnas", changes) for changes in VARIANTS.values()],
    ids=[*METHODS, *VARIANTS],
)
def test_a_run_on_a_pretended_gpu_is_that_on_the_cpu(name: str, changes: dict[str, Any]) -> None:
    """Nothing is left on the wrong device. Only the classifier adds up differently."""
    federation = tiny_federation(**SHORT | changes)
    state, figures = outcome(METHODS[name](federation))
    with PretendGPU():
        method = METHODS[name](moved(federation))
        there = method.state()
        assert {t.device for n, t in there.items() if not n.endswith("_known")} <= {GPU}
        found, same = outcome(method)
    for part, tensor in state.items():
        assert_close(found[part], tensor, 1e-4, part)
    assert same == pytest.approx(figures, rel=1e-4)


def test_a_tensor_left_behind_is_found() -> None:
    """The test of the test."""
    with PretendGPU():
        method = METHODS["meta_dnas"](moved(tiny_federation()))
        assert isinstance(method, Searching)
        method.server.alpha = method.server.alpha.cpu()
        with pytest.raises(RuntimeError, match="on two devices"):
            method.round(0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"client__optimizer": "sgd", "client__final_temperature": 0.2} | RAGGED,
        {"client__order": "second"},
        {"client__order": "single", "client__penalty_kind": "dual"},
        {"client__relaxation": "gumbel"} | RAGGED,
    ],
)
def test_a_search_waits_for_the_device_no_oftener_the_longer_it_is(changes: dict[str, Any]) -> None:
    """Only at its end, for whether all is finite."""
    federation = tiny_federation(**changes)
    waits = []
    for epochs in (1, 3):
        with PretendGPU() as gpu:
            method = METHODS["meta_dnas"](moved(federation))
            assert isinstance(method, Searching)
            gpu.waits.clear()
            relaxation = relaxation_of(federation.config.client, 0, 1)
            method.search([0, 1, 2], epochs, "key", "search", method._pull(), relaxation)
            waits.append(gpu.waits)
    assert waits[0] == waits[1]
    assert waits[0].total() <= 12


@pytest.mark.parametrize(
    "changes",
    [
        {"client__epochs": 3},
        {"client__optimizer": "sgd", "client__final_temperature": 0.2, "client__epochs": 3}
        | RAGGED,
        {"client__order": "single", "client__penalty_kind": "dual", "client__epochs": 3},
        {"client__relaxation": "sigmoid", "budget__devices": ("macs", "params")} | RAGGED,
    ],
)
@pytest.mark.parametrize("name", ["meta_dnas", "fedavg"])
def test_what_graphs_capture_neither_waits_nor_uploads(
    name: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either would end a capture. The result is that of the same steps one by one."""
    replays: list[EagerReplay] = []

    class Strict(EagerReplay):
        def __init__(self, run: Passes, inputs: Inputs) -> None:
            def strictly(given: Inputs) -> Pass:
                before = gpu.waits.copy(), gpu.uploads
                done = run(given)
                assert (gpu.waits, gpu.uploads) == before
                return done

            super().__init__(strictly, inputs)
            replays.append(self)

    monkeypatch.setattr(training, "GraphedStep", partial(GraphedStep, record=Strict))
    plain = tiny_federation(**SHORT | changes)
    graphs = {"run.device": "cuda", "client.graphs": True}
    graphed = replace(plain, config=plain.config.updated(graphs))
    with PretendGPU() as gpu:
        state, figures = outcome(METHODS[name](moved(plain)))
        assert not replays
        found, same = outcome(METHODS[name](moved(graphed)))
        assert replays
        for part, tensor in state.items():
            assert_identical(found[part], tensor, part)
        assert same == figures


@pytest.mark.parametrize("name", ["fedavg", "fedavg_head", "ditto", "per_fedavg"])
def test_nor_does_the_training_of_a_fixed_network(name: str) -> None:
    federation = tiny_federation(**RAGGED)
    waits = []
    for epochs in (1, 3):
        with PretendGPU() as gpu:
            method = METHODS[name](moved(federation))
            assert isinstance(method, FedAvg)
            cohort = method._start([0, 1, 2], final=False)
            gpu.waits.clear()
            method._tune(method.plan, cohort, epochs, None, "key", None)
            waits.append(gpu.waits)
    assert waits[0] == waits[1]


@pytest.mark.parametrize("name", ["fedavg", "meta_dnas"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    """Checkpoints are written from the device, and loaded to it."""
    with PretendGPU():
        federation = moved(tiny_federation(**SHORT | {"server__rounds": 2}))
        whole = run_in(tmp_path / "whole", federation, [name])
        create_run(tmp_path / "cut", federation.config, [name])

        class Cut(Silent):
            def round_finished(self, *args: Any) -> None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Runner(federation, [name], tmp_path / "cut", Cut()).run()
        resumed = resume_in(tmp_path / "cut", federation, [name])
        key = METHODS[name].training_key
        for part, tensor in whole._tensors[key].items():
            assert_identical(resumed._tensors[key][part].cpu(), tensor.cpu(), part)
    assert events(tmp_path / "whole") == events(tmp_path / "cut")


def unusable() -> str | None:
    try:
        placement.device_of("cuda")
    except ConfigError as error:
        return str(error)
    return None


@pytest.fixture
def on_device() -> None:
    """Takes the place of what would make the tests' own tensors on the device."""


@pytest.mark.skipif(unusable() is not None, reason=str(unusable()))
@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
@pytest.mark.parametrize("name", ["meta_dnas", "fedavg", "darts"])
def test_two_rounds_on_a_gpu_are_those_on_the_cpu(name: str, graphs: bool, on_device: None) -> None:
    """Up to rounding, which a search of few steps does not blow up."""
    changes = RAGGED | {"client__lr": 0.001, "client__epochs": 3}
    expected, figures = outcome(METHODS[name](tiny_federation(**changes)))
    federation = Federation.build(tiny_config(**changes, run__device="cuda", client__graphs=graphs))
    found, same = outcome(METHODS[name](federation))
    for part, tensor in expected.items():
        assert_close(found[part], tensor, 5e-2, part)
    # Of a client's 8 test images or more, rounding may turn two.
    assert same == pytest.approx(figures, abs=0.3)
