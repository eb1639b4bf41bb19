"""Every case of the registry at a tiny size: its variants agree, and a wrong one is found out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from metadnas_ext import aggregation
from metadnas_ext.bench import baseline
from metadnas_ext.bench.case import NCHW, OURS, Case, Outcome, Setup, Variant, Work, compare
from metadnas_ext.bench.cases import aggregation as aggregation_cases
from metadnas_ext.bench.registry import CASES, GROUPS, select
from metadnas_ext.errors import BenchmarkError
from metadnas_ext.nn import DerivedNet, MixedOp, Supernet
from metadnas_ext.search import graphs
from metadnas_ext.search.graphs import EagerReplay
from metadnas_ext.space import DARTS_V2, NetworkShape

from .._pretend_gpu import GPU, PretendGPU


def distinct() -> list[Case]:
    """Cases that differ at their tiny sizes."""
    found = {(case.make, tuple(case.sizes(tiny=True).items())): case for case in CASES.values()}
    return list(found.values())


@pytest.mark.parametrize("case", distinct(), ids=lambda case: case.name)
def test_variants_agree(case: Case) -> None:
    setup = case.setup(tiny=True)
    makers = setup.makers()
    assert list(makers) == list(case.variants)
    expected = None
    for name, make in makers.items():
        variant = make()
        outcome = variant.step()
        expected = outcome if expected is None else expected
        assert outcome.keys() == expected.keys()
        if variant.comparable:
            assert compare(expected, outcome, setup.tolerance, name) <= setup.tolerance


@pytest.mark.parametrize("case", distinct(), ids=lambda case: case.name)
def test_everything_is_on_the_device(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretended GPU, which refuses what mixes devices."""
    monkeypatch.setattr(aggregation_cases, "free_memory", lambda device: 10**9)
    # Steps are not captured on what is no GPU.
    monkeypatch.setattr(graphs, "CUDAReplay", lambda run, inputs, pool: EagerReplay(run, inputs))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    with PretendGPU() as gpu:
        for name, make in case.setup(tiny=True, device=GPU).makers().items():
            variant = make()
            values = (
                v for v in variant.step().values() for v in ([v] if torch.is_tensor(v) else v)
            )
            assert all(map(gpu.has, [*values, *variant.parameters])), name


@pytest.mark.parametrize("name", ["search_step/c8-5-cells-b16", "federated_round/8-clients"])
def test_steps_start_from_the_same_state_every_time(name: str) -> None:
    setup = CASES[name].setup(tiny=True)
    for make in (setup.variants[NCHW], setup.variants[OURS]):
        variant = make()
        first, second = variant.step(), variant.step()
        assert compare(first, second, 1e-6, "the second step") <= 1e-6


def outcome_of(name: str) -> tuple[Setup, Outcome]:
    setup = CASES[name].setup(tiny=True)
    return setup, setup.variants[OURS]().step()


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("mixed_op/c16-32x32-s2", lambda t: t * 1.01, "the result differs"),
        ("mixed_op/c16-32x32-s2", lambda t: t[1:], "the result differs"),
        ("mixed_op/c16-32x32-s2", lambda t: t * float("nan"), "the result differs"),
        ("supernet/c8-5-cells-b16", lambda t: t * 1.1, "the logits differs"),
    ],
)
def test_wrong_results_are_found_out(
    name: str, spoil: Callable[[Tensor], Tensor], message: str
) -> None:
    setup, outcome = outcome_of(name)
    first = next(iter(outcome))
    value = outcome[first]
    assert isinstance(value, Tensor)
    with pytest.raises(BenchmarkError, match=f"ours: {message}"):
        compare(outcome, {**outcome, first: spoil(value)}, setup.tolerance, "ours")


def test_missing_results_are_found_out() -> None:
    setup, outcome = outcome_of("mixed_op/c16-32x32-s1")
    rest = {name: value for name, value in outcome.items() if name != "of p"}
    with pytest.raises(BenchmarkError, match="what it computes: of p"):
        compare(outcome, rest, setup.tolerance, "ours")


def test_search_would_notice_a_step_that_is_left_out() -> None:
    setup, outcome = outcome_of("search_step/c8-5-cells-b16")
    for name in ("the step on w", "alpha"):
        value = outcome[name]
        assert isinstance(value, Tensor)
        before = torch.zeros_like(value)
        if name == "alpha":
            _, before = value, value + 3e-4 * value.sign()  # Adam's first step, undone
        with pytest.raises(BenchmarkError):
            compare(outcome, {**outcome, name: before}, setup.tolerance, "ours")


def test_baselines_have_the_names_of_the_package() -> None:
    shape = NetworkShape(4, 3, nodes=2, image_size=8)
    pairs = [
        (baseline.MixedOp(4, 2), MixedOp(4, 2)),
        (baseline.Supernet(shape), Supernet(4, 10, 3, nodes=2, image_size=8)),
    ]
    full = NetworkShape(4, 3, image_size=8)
    pairs.append((baseline.DerivedNet(full, DARTS_V2), DerivedNet(full, DARTS_V2)))
    for eager, ours in pairs:
        ours.load_state_dict(eager.state_dict(), strict=True)
        eager.load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("mixed_op/c16-32x32-s1", 3),
        ("mixed_op/c16-32x32-s2", 3),
        ("cohort/c16-32x32", 3),
        ("supernet/c8-5-cells-b16", 3),
        ("derived/train-c16-8-cells-b32", 3),
        ("derived/infer-c16-8-cells-b32", 1),
    ],
)
def test_work(name: str, passes: int) -> None:
    """Beside what torch counts forward; backward, it counts depthwise convolutions as dense."""
    setup = CASES[name].setup(tiny=True)
    step = setup.variants[NCHW]().step
    with FlopCounterMode(display=False) as counter:
        step()
    counts = counter.get_flop_counts()["Global"]
    forward = counts[torch.ops.aten.convolution] + counts.get(torch.ops.aten.addmm, 0)
    assert setup.work == Work(flop=passes * forward)


def test_aggregation_takes_fewer_clients_where_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregation_cases, "free_memory", lambda device: 3 * 4 * 50 * 6)
    setup = aggregation_cases.mean(clients=20, width=50)
    assert setup.note == "7 clients only: 20 do not fit into memory"
    assert setup.work == Work(bytes=4 * 8 * 50)


ROBUST = ["median", "trimmed_mean", "krum", "multi_krum", "geometric_median"]


@pytest.mark.parametrize("how", ROBUST)
def test_robust_rules_are_measured_once_the_package_has_them(how: str) -> None:
    names = [name for name in CASES if name.startswith(f"aggregation/{how}-")]
    assert bool(names) == (how in aggregation.METHODS)


@pytest.mark.parametrize("how", ROBUST)
def test_robust_baselines_agree(how: str) -> None:
    """Whether or not the package has the rule: plain torch's ways to it give the same."""
    setup = getattr(aggregation_cases, how)(clients=11, width=30)
    outcomes = [make().step() for name, make in setup.variants.items() if name != OURS]
    for outcome in outcomes:
        compare(outcomes[0], outcome, setup.tolerance, how)


def test_geometric_median_baseline() -> None:
    """No direction leads to a smaller sum of distances."""
    setup = aggregation_cases.geometric_median(clients=7, width=5)
    variant = setup.variants[aggregation_cases.WEISZFELD]()
    (updates,) = variant.parameters
    point = variant.step()["the result"]
    assert isinstance(point, Tensor)
    point = point.clone().requires_grad_()
    (updates - point).norm(dim=1).sum().backward()
    assert float(point.grad.norm()) < 1e-4  # type: ignore[union-attr]


def test_groups_and_names() -> None:
    assert {case.group for case in CASES.values()} == set(GROUPS)
    assert all(case.variants[-1] == OURS for case in CASES.values())
    assert all(case.tiny for case in CASES.values())


@pytest.mark.parametrize(
    ("patterns", "full", "count"),
    [
        ((), False, sum(case.quick for case in CASES.values())),
        ((), True, sum(not case.large for case in CASES.values())),
        (("mixed_op",), False, 5),
        (("cohort/*", "cohort/c16-32x32"), False, 3),
        (("supernet/c16-8-cells-b64",), False, 1),
    ],
)
def test_select(patterns: tuple[str, ...], full: bool, count: int) -> None:
    chosen = select(patterns, full)
    assert len(chosen) == len({case.name for case in chosen}) == count


def test_a_gpu_measures_more() -> None:
    assert len(select(full=True, large=True)) == len(CASES)
    assert select(large=True) == select()
    assert all(case.large for case in select(["supernet_cohort"]))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("mixed_opp", "did you mean mixed_op"),
        ("mixed_op/c16-32x32", "did you mean mixed_op/c16-32x32-s"),
        ("zzz", "groups: mixed_op, "),
        ("agg*x", "no benchmark case matches"),
    ],
)
def test_unknown_case(pattern: str, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        select([pattern])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("mixed_op/c16-32x32-s1", {baseline.MixedOp: 1}),
        ("supernet/c8-5-cells-b16", {baseline.MixedOp: 3 * 5}),
        ("derived/train-c16-8-cells-b32", {baseline.Cell: 3}),
        ("search_step/c8-5-cells-b16", {baseline.MixedOp: 3 * 5}),
    ],
)
def test_what_is_compiled(
    name: str, parts: dict[type[nn.Module], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without compiling it, which takes minutes; the step is that of the others."""
    compiled: Counter[type[nn.Module]] = Counter()

    def note(module: nn.Module, mode: str, dynamic: bool) -> None:
        assert (mode, dynamic) == ("some mode", False)
        compiled[type(module)] += 1

    monkeypatch.setattr(nn.Module, "compile", note)
    setup = CASES[name].setup(tiny=True)
    outcome = setup.makers(["some mode"])["torch.compile some mode"]().step()
    assert compiled == parts
    compare(setup.variants[NCHW]().step(), outcome, setup.tolerance, name)


def test_compiled_variants_come_before_ours() -> None:
    case = CASES["mixed_op/c16-32x32-s1"]
    setup = replace(case.setup(tiny=True), compiled=lambda mode: Variant(lambda: {"mode": mode}))
    makers = setup.makers(["default", "other"])
    assert list(makers)[-3:] == ["torch.compile default", "torch.compile other", OURS]
    assert makers["torch.compile other"]().step() == {"mode": "other"}
