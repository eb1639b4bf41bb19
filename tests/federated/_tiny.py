"""A federation of three clients on a few of scikit-learn's digits, for every engine test."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metadnas_ext.config import Config
from metadnas_ext.federated.federation import Federation
from metadnas_ext.federated.runner import Runner, create_run

METHODS = ["meta_dnas", "fedavg", "fedavg_ft", "darts"]
TINY = {
    "data.max_images": 200,
    "data.clients": 4,
    "data.unseen": 0.25,
    "data.dirichlet": 0.5,
    "data.min_size": 8,
    "space.channels": 4,
    "space.layers": 2,
    "space.nodes": 2,
    "client.epochs": 1,
    "client.batch_size": 16,
    "server.rounds": 2,
    "server.clients_per_round": 2,
    "personalise.adapt_epochs": 1,
    "personalise.finetune_epochs": 1,
}
"""Two rounds of two of the three seen clients; one client is unseen."""


def tiny_config(**changes: Any) -> Config:
    """TINY with changes, written `client__lr=0.1`."""
    return Config().updated(TINY | {k.replace("__", "."): v for k, v in changes.items()})


@functools.cache
def tiny_federation(**changes: Any) -> Federation:
    return Federation.build(tiny_config(**changes))


def run_in(folder: Path, federation: Federation, methods: list[str], observer: Any = None) -> Any:
    """A fresh run in `folder`; the Runner, after its end."""
    create_run(folder, federation.config, methods)
    return resume_in(folder, federation, methods, observer)


def resume_in(
    folder: Path, federation: Federation, methods: list[str], observer: Any = None
) -> Any:
    runner = Runner(federation, methods, folder, observer)
    runner.run()
    return runner


def events(folder: Path, timed: bool = False) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what depends on the clock unless `timed`."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    skipped = () if timed else ("seconds",)
    return [{k: v for k, v in json.loads(line).items() if k not in skipped} for line in lines]


def assert_identical(actual: Tensor, expected: Tensor, what: str = "") -> None:
    """Equal to the bit, in shape and in dtype."""
    assert actual.dtype == expected.dtype, what
    assert torch.equal(actual, expected), f"{what}: off by {_distance(actual, expected):.2e}"


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """Equal up to `tolerance` times the largest magnitude (at least 1)."""
    assert actual.shape == expected.shape, what
    error, scale = _distance(actual, expected), max(1.0, float(expected.abs().max()))
    assert error <= tolerance * scale, f"{what}: off by {error:.2e}, magnitude {scale:.2e}"


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max()) if a.shape == b.shape else float("inf")
