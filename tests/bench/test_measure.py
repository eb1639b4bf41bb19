"""Times, saved bytes and peak memory, on steps whose figures are known beforehand."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from metadnas_ext.bench import memory
from metadnas_ext.bench.case import COMPILED, GRAPH, OURS, Case, Outcome, Setup, Variant, Work
from metadnas_ext.bench.device import bench_device
from metadnas_ext.bench.measure import Settings, Yardsticks, run_case
from metadnas_ext.bench.results import CaseResult, VariantResult
from metadnas_ext.bench.saved import most_saved
from metadnas_ext.errors import BenchmarkError

ONE = torch.ones(3)


def case_of(steps: dict[str, Callable[[], Outcome]], work: Work = Work()) -> Case:  # noqa: B008
    def make(clients: int, device: torch.device) -> Setup:
        makers = {name: lambda step=step: Variant(step) for name, step in steps.items()}
        return Setup(makers, 1e-3, work)

    return Case("group/case", "a case", make, {"clients": 5}, {"clients": 2}, tuple(steps))


def run(case: Case, **settings: float) -> CaseResult:
    return run_case(case, Settings(tiny=True, **settings), Yardsticks(tiny=True))  # type: ignore[arg-type]


def sleeping(seconds: float) -> Callable[[], Outcome]:
    def step() -> Outcome:
        time.sleep(seconds)
        return {"x": ONE}

    return step


def test_times_and_ratios() -> None:
    result = run(case_of({"slow": sleeping(0.03), OURS: sleeping(0.01)}), repeats=3)
    assert [len(variant.seconds) for variant in result.variants.values()] == [3, 3]
    assert 0.01 <= result.ours.median < 0.03 <= result.variants["slow"].median
    assert result.ratios()["slow"] == pytest.approx(3, rel=0.5)
    assert result.params == {"clients": 2}
    assert result.sgemm is None


def test_short_steps_run_several_times_in_a_measurement() -> None:
    calls = 0

    def step() -> Outcome:
        nonlocal calls
        calls += 1
        return {"x": ONE}

    result = run(case_of({"first": sleeping(0.0), OURS: step}), repeats=2)
    assert calls > 20
    assert result.ours.median < 1e-3


def test_variants_take_turns() -> None:
    order: list[str] = []

    def step(name: str) -> Callable[[], Outcome]:
        def body() -> Outcome:
            order.append(name)
            time.sleep(0.003)
            return {"x": ONE}

        return body

    run(case_of({"a": step("a"), "b": step("b"), OURS: step("c")}), repeats=3)
    assert order[-9:] == list("abcbcacab")


def test_a_case_ends_when_its_time_is_over() -> None:
    result = run(case_of({"a": sleeping(0.02), OURS: sleeping(0.02)}), repeats=9, seconds=0.03)
    assert len(result.ours.seconds) == 1


def test_a_wrong_result_is_not_timed() -> None:
    calls = []

    def wrong() -> Outcome:
        calls.append(1)
        return {"x": 2 * ONE}

    with pytest.raises(BenchmarkError, match=r"group/case, metadnas_ext: x differs .* 1\.0e\+00"):
        run(case_of({"right": sleeping(0), OURS: wrong}))
    assert len(calls) <= 2


def broken(mode: str) -> Variant:
    if mode == "default":
        raise RuntimeError("no compiler")
    return Variant(lambda: {"x": 2 * ONE})


def test_what_torch_compile_gets_wrong_is_noted() -> None:
    case = case_of({"a": sleeping(0), OURS: sleeping(0)})
    setup = replace(case.setup(tiny=True), compiled=broken)
    compiled = replace(case, make=lambda **sizes: setup)
    result = run(compiled, repeats=1, compile=True)
    assert list(result.variants) == ["a", OURS]
    assert result.note == (
        "torch.compile default failed (RuntimeError); "
        "torch.compile max-autotune-no-cudagraphs failed (BenchmarkError)"
    )
    assert run(compiled, repeats=1).note == ""


def test_graphs_follow_the_steps_they_are_made_of() -> None:
    """Ours last, and none of what captures graphs itself or cannot be captured."""
    case = case_of({"a": sleeping(0), OURS: sleeping(0)})
    setup = replace(case.setup(), compiled=broken, graphs=("a", COMPILED, OURS))
    seen = []

    def capture(variant: Variant) -> Variant:
        seen.append(variant)
        return replace(variant, parameters=[ONE])

    makers = setup.makers(("b", "max-autotune"), capture)
    compiled = [f"{COMPILED} b", f"{COMPILED} b{GRAPH}", f"{COMPILED} max-autotune"]
    assert list(makers) == ["a", f"a{GRAPH}", *compiled, OURS, OURS + GRAPH]
    assert makers[OURS + GRAPH]().parameters == [ONE]
    assert [variant.step for variant in seen] == [makers[OURS]().step]
    assert list(replace(setup, graphs=(OURS,)).makers((), capture)) == ["a", OURS, OURS + GRAPH]
    assert list(setup.makers()) == ["a", OURS]


def test_ratios_are_to_the_graph_where_there_is_one() -> None:
    times = {"a": 8.0, f"a{GRAPH}": 4.0, OURS: 2.0, OURS + GRAPH: 1.0}
    times |= {f"{COMPILED} b": 3.0, f"{COMPILED} b{GRAPH}": 2.5}
    variants = {name: VariantResult([value], value) for name, value in times.items()}
    result = CaseResult("group/case", "a case", {}, variants)
    assert list(result.shown()) == ["a", f"a{GRAPH}", COMPILED, OURS, OURS + GRAPH]
    assert result.ratios() == {"a": 8.0, f"a{GRAPH}": 4.0, COMPILED: 2.5, OURS: 2.0}
    assert CaseResult.from_json(result.to_json()).ratios() == result.ratios()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "--device is 'gpu', expected cpu, cuda, cuda:<n> or auto"),
        ("cuda", "--device is 'cuda', but torch .* finds no GPU"),
    ],
)
def test_devices_that_cannot_be_measured(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BenchmarkError, match=message):
        bench_device(name)
    assert bench_device("cpu") == bench_device("auto") == torch.device("cpu")


def test_yardsticks_only_where_the_work_is_known() -> None:
    steps = {"a": sleeping(0), OURS: sleeping(0)}
    counted = run(case_of(steps, Work(flop=10.0)), repeats=2)
    assert counted.sgemm is not None
    assert counted.copy is None
    moved = run(case_of(steps, Work(bytes=10.0)), repeats=2)
    assert moved.sgemm is None
    assert moved.copy is not None
    assert moved.copy > 1e6


def test_saved_bytes() -> None:
    """x * y keeps both factors, exp its result; a parameter and a second holder cost nothing."""
    x, weight = torch.ones(100, requires_grad=True), torch.ones(100, requires_grad=True)

    def step() -> None:
        y = (x * weight).exp()  # x and the result
        (y * y.sum()).sum().backward()  # the result once more, and its sum

    for _ in range(2):
        x.grad = weight.grad = None
        _, most = most_saved(step, [weight])
        assert most == 4 * (100 + 100 + 1)


def test_saved_bytes_count_what_is_held_at_one_time() -> None:
    x = torch.ones(100, requires_grad=True)

    def once() -> None:
        # Of two inputs one gradient: the other's branch is freed with the graph, not before.
        other = torch.ones(100, requires_grad=True).exp().exp()
        torch.autograd.grad((x.exp() * other).sum(), x)

    def step() -> None:
        for _ in range(3):
            once()

    assert most_saved(step, [])[1] == 4 * 100 * 3


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_peak_memory() -> None:
    """In a process of its own; the mean of a few kB takes a few kB, and torch its first call."""
    peak = memory.peak_bytes("aggregation/mean-alpha-10", OURS, tiny=True)
    assert 0 <= peak < 50_000_000


def test_peak_memory_says_why_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(BenchmarkError, match=r"memory of a/b, ours cannot .* exit status 1"):
        memory.peak_bytes("a/b", "ours")


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_peak_memory_of_a_known_step(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 64_000_000

    def step() -> Outcome:
        return {"x": torch.ones(size // 4).sum()}

    case = replace(case_of({OURS: step}), name="known/case")
    monkeypatch.setitem(memory.CASES, "known/case", case)
    for _ in range(2):  # Linux counts pages in batches
        peak = memory._measure("known/case", OURS, threads=1, tiny=False)
        assert peak == pytest.approx(size, rel=0.1)
