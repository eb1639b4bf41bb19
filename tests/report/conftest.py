"""Made-up run folders: the input is synthetic, the code under test is the real one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

Json = dict[str, Any]


def make_genotype(first: str = "sep_conv_3x3") -> Json:
    """A cell in the shape of a DARTS genotype, with every family of operations."""
    normal = [
        [first, 0], ["dil_conv_5x5", 1], ["sep_conv_5x5", 2], ["avg_pool_3x3", 1],
        ["max_pool_3x3", 3], ["skip_connect", 0], ["skip_connect", 0], ["dil_conv_3x3", 4],
    ]  # fmt: skip
    reduce = [
        ["max_pool_3x3", 0], ["max_pool_3x3", 1], ["skip_connect", 2], ["max_pool_3x3", 1],
        ["max_pool_3x3", 0], ["skip_connect", 2], ["skip_connect", 2], ["max_pool_3x3", 1],
    ]  # fmt: skip
    concat = [2, 3, 4, 5]
    return {
        "normal": normal,
        "normal_concat": concat,
        "reduce": reduce,
        "reduce_concat": list(concat),
    }


def make_round(method: str = "meta_dnas", index: int = 1, **changes: Any) -> Json:
    """One round event; `changes` replace its entries."""
    record = {
        "event": "round",
        "method": method,
        "round": index,
        "clients": [0, 1],
        "train_loss": 2.0 / index,
        "val_loss": 2.2 / index,
        "val_accuracy": 1 - 0.8 / index,
        "alpha_entropy": 2.0 - 0.1 * index,
        "client_entropy": 1.9 - 0.1 * index,
        "expected_cost": 1.5e6 - 1e4 * index,
        "skips": 1.0,
        "client_skips": 1.5,
        "bytes_up": 1000,
        "bytes_down": 2000,
        "seconds": 1.5,
    }
    return record | changes


def make_result(client: int = 0, accuracy: float | None = 0.9, **changes: Any) -> Json:
    """One client's entry of results.json; `changes` replace its entries."""
    record = {
        "client": client,
        "seen": True,
        "train_size": 120,
        "test_size": 40,
        "test_accuracy": accuracy,
        "val_accuracy": 0.95,
        "cost": 1.2e6,
        "budget": 2.0e6,
        "unit": "macs",
        "kept": "personal",
        "genotype": make_genotype(),
        "supernet_accuracy": None,
        "discrete_accuracy": None,
        "expected_cost": None,
        "steps": None,
        "adaptation": None,
        "device": "macs",
        "diverged": None,
    }
    return record | changes


def write_run(folder: Path, rounds: list[Json], results: Json | None = None) -> Path:
    """A run folder; without results it has not ended."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"data": {"name": "made-up"}}))
    lines = [json.dumps(entry) for entry in rounds]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
        genotypes: Json = {method: {"meta": make_genotype()} for method in results}
        (folder / "genotypes.json").write_text(json.dumps(genotypes))
    return folder


@pytest.fixture
def compare_run(tmp_path: Path) -> Path:
    """An ended run of two methods with eight clients, one of them unseen, one over budget."""
    rounds = [make_round("meta_dnas", i) for i in range(1, 6)]
    searched = ("alpha_entropy", "client_entropy", "expected_cost", "skips", "client_skips")
    fixed = dict.fromkeys(searched)
    rounds += [make_round("fedavg", i, val_loss=math.nan, **fixed) for i in range(1, 6)]
    results = [
        make_result(i, 0.60 + 0.05 * i, genotype=make_genotype(f"sep_conv_{3 + 2 * (i % 2)}x{3}"))
        for i in range(8)
    ]
    results[7]["seen"] = False
    results[2]["cost"] = 2.1e6
    fixed_results = [make_result(i, 0.5 + 0.04 * i, kept="fixed", budget=None) for i in range(8)]
    return write_run(tmp_path / "run", rounds, {"meta_dnas": results, "fedavg": fixed_results})


@pytest.fixture(scope="session")
def maker() -> SimpleNamespace:
    """The makers above, for fixtures that last longer than one test."""
    return SimpleNamespace(
        genotype=make_genotype, round=make_round, result=make_result, run=write_run
    )


@pytest.fixture
def make(maker: SimpleNamespace) -> SimpleNamespace:
    return maker
