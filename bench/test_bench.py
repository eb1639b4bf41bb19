"""The registry of `metadnas bench` under pytest-benchmark: `pytest bench --benchmark-only`.

For its comparisons and histograms, e.g. `--benchmark-autosave` before a change and
`--benchmark-compare` after it. `--full` adds the slow cases.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from metadnas_ext.bench.case import Case, Setup, compare
from metadnas_ext.bench.registry import select

ROUNDS = 5


def every_variant() -> Iterator[Any]:
    for case in select(full=True):
        marks = () if case.quick else pytest.mark.full
        for name in case.variants:
            yield pytest.param(case, name, id=f"{case.name}-{name}", marks=marks)


@lru_cache(maxsize=1)
def setup_of(case_name: str) -> Setup:
    """One case at a time, its inputs shared by its variants."""
    (case,) = select([case_name])
    return case.setup()


@pytest.mark.parametrize(("case", "name"), list(every_variant()))
def test_case(case: Case, name: str, benchmark: BenchmarkFixture) -> None:
    setup = setup_of(case.name)
    first, variant = next(iter(setup.variants.values()))(), setup.variants[name]()
    if variant.comparable:
        compare(first.step(), variant.step(), setup.tolerance, f"{case.name}, {name}")
    benchmark.group = case.name
    benchmark.pedantic(variant.step, rounds=ROUNDS, warmup_rounds=1)
