"""Whole runs on a GPU: on a pretended one everywhere, on a real one where there is one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from metadnas_ext.data import MemoryStore
from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods import METHODS, Method

from .._pretend_gpu import GPU, PretendGPU
from ..federated._tiny import assert_close, tiny_federation

RAGGED = {"data__dirichlet": 0.2, "client__batch_size": 7, "server__clients_per_round": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "unequal clients": RAGGED,
    "second order": RAGGED | {"client__order": "second", "client__optimizer": "sgd"},
    "single level": {"client__order": "single", "client__alpha_warmup": 1},
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
    "sub-networks": RAGGED | {"server__search_rounds": 1, "server__local": ("bn",)},
    "partial channels": {"space__partial": 2, "budget__levels": (0.6,)},
    "nasbench201": RAGGED | {"space__space": "nasbench201", "space__layers": 3, "space__nodes": 4},
}


def moved(federation: Federation) -> Federation:
    """The same on the GPU."""
    assert isinstance(federation.store, MemoryStore)
    return replace(federation, store=federation.store.to(GPU), device=GPU)


def outcome(method: Method) -> tuple[dict[str, Tensor], list[float]]:
    """State after all rounds, and the figures of rounds and clients."""
    rounds = [method.round(index) for index in range(method.rounds)]
    state = {name: tensor.cpu() for name, tensor in method.state().items()}
    results = method.personalise(range(4))
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
    federation = tiny_federation(**changes)
    state, figures = outcome(METHODS[name](federation))
    with PretendGPU():
        method = METHODS[name](moved(federation))
        there = method.state()
        assert {t.device for n, t in there.items() if not n.endswith("_known")} <= {GPU}
        found, same = outcome(method)
    for part, tensor in state.items():
        assert_close(found[part], tensor, 1e-4, part)
    assert same == pytest.approx(figures, rel=1e-4)
