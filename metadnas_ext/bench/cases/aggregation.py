"""Aggregation over clients: α of 10 to 10,000 clients, whole networks of 256, robust rules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from metadnas_ext import aggregate
from metadnas_ext.aggregation import METHODS
from metadnas_ext.bench.case import OURS, Case, Outcome, Setup, Variant, Work
from metadnas_ext.bench.device import free_memory
from metadnas_ext.placement import CPU

TOLERANCE = 1e-4
LOOP = "torch, client by client"
STACKED = "torch, stacked"
MEDIAN, SORT, CDIST = "torch.median", "torch.sort", "torch.cdist"
WEISZFELD = "torch, Weiszfeld"
ALPHA = 2 * 14 * 8  # numbers of α
FLOAT = 4  # bytes


def mean(clients: int, width: int, device: torch.device = CPU) -> Setup:
    """FedAvg's weighted mean of (clients, width)."""
    updates, note = _updates(clients, width, device)
    weights = (torch.rand(len(updates)) + 0.5).to(device)

    def loop() -> Tensor:
        total = torch.zeros_like(updates[0])
        for update, weight in zip(updates, (weights / weights.sum()).tolist(), strict=True):
            total.add_(update, alpha=weight)
        return total

    return _setup(
        updates,
        note,
        lambda: aggregate(updates, weights),
        {LOOP: loop, STACKED: lambda: torch.mv(updates.T, weights / weights.sum())},
    )


def median(clients: int, width: int, device: torch.device = CPU) -> Setup:
    """Coordinate-wise median of an odd number of clients, which all agree on."""
    updates, note = _updates(clients, width, device)
    return _setup(
        updates,
        note,
        lambda: aggregate(updates, how="median"),
        {
            MEDIAN: lambda: updates.median(0).values,
            SORT: lambda: updates.sort(0).values[len(updates) // 2],
        },
    )


def trimmed_mean(clients: int, width: int, device: torch.device = CPU) -> Setup:
    """Coordinate-wise mean without the lowest and the highest tenth."""
    updates, note = _updates(clients, width, device)
    cut = len(updates) // 10
    return _setup(
        updates,
        note,
        lambda: aggregate(updates, how="trimmed_mean"),
        {SORT: lambda: updates.sort(0).values[cut : len(updates) - cut].mean(0)},
    )


def krum(clients: int, width: int, device: torch.device = CPU) -> Setup:
    """The update nearest to its neighbours (Blanchard et al., NeurIPS 2017)."""
    return _krum("krum", clients, width, device, chosen=1)


def multi_krum(clients: int, width: int, device: torch.device = CPU) -> Setup:
    """The mean of the updates nearest to their neighbours, all but the f that may be arbitrary."""
    return _krum("multi_krum", clients, width, device, chosen=clients - _tolerable(clients))


def geometric_median(clients: int, width: int, device: torch.device = CPU) -> Setup:
    """Weiszfeld's iteration: the mean, weighted by the inverse distances, over and over."""
    updates, note = _updates(clients, width, device)

    def weiszfeld() -> Tensor:
        point = updates.mean(0)
        for _ in range(100):
            distances = (updates - point).norm(dim=1).clamp(min=1e-6)
            before, point = point, torch.mv(updates.T, 1 / distances) / (1 / distances).sum()
            if (point - before).norm() < 1e-6 * distances.mean():
                break
        return point

    return _setup(
        updates,
        note,
        lambda: aggregate(updates, how="geometric_median"),
        {WEISZFELD: weiszfeld},
    )


def _krum(how: str, clients: int, width: int, device: torch.device, chosen: int) -> Setup:
    updates, note = _updates(clients, width, device)
    near = len(updates) - _tolerable(len(updates)) - 2

    def nearest(distances: Tensor) -> Tensor:
        scores = distances.sort(1).values[:, 1 : near + 1].sum(1)
        return updates[scores.argsort()[:chosen]].mean(0)

    def loop() -> Tensor:
        rows = [torch.stack([torch.norm(a - b).square() for b in updates]) for a in updates]
        return nearest(torch.stack(rows))

    return _setup(
        updates,
        note,
        lambda: aggregate(updates, how=how),
        {LOOP: loop, CDIST: lambda: nearest(torch.cdist(updates, updates).square())},
    )


def _tolerable(clients: int) -> int:
    """How many arbitrary clients f Krum stands: 2 f + 3 clients are needed."""
    return max(0, (clients - 3) // 2)


def _setup(
    updates: Tensor,
    note: str,
    ours: Callable[[], object],
    others: dict[str, Callable[[], object]],
) -> Setup:
    def variant(call: Callable[[], object]) -> Variant:
        def step() -> Outcome:
            result = call()
            assert isinstance(result, Tensor)
            return {"the result": result}

        return Variant(step, [updates])

    traffic = FLOAT * (updates.numel() + updates.shape[1])
    makers = {name: partial(variant, call) for name, call in {**others, OURS: ours}.items()}
    return Setup(makers, TOLERANCE, Work(bytes=traffic), note=note, graphs=tuple(makers))


def _updates(clients: int, width: int, device: torch.device) -> tuple[Tensor, str]:
    """Random updates, as many as a third of the free memory holds, and a note if that is fewer."""
    fitting = free_memory(device) // (3 * FLOAT * width)
    count = max(3, min(clients, fitting | 1))  # odd if cut, for the median
    draw = torch.Generator().manual_seed(0)
    note = "" if count == clients else f"{count} clients only: {clients} do not fit into memory"
    return torch.randn(count, width, generator=draw).to(device), note


def _case(
    what: str,
    title: str,
    make: Callable[..., Setup],
    clients: int,
    width: int,
    others: tuple[str, ...],
    quick: bool = True,
    large: bool = False,
) -> Case:
    return Case(
        f"aggregation/{what}",
        title,
        make,
        {"clients": clients, "width": width},
        {"clients": min(clients, 11), "width": min(width, 64)},
        (*others, OURS),
        quick,
        large,
    )


def _means() -> list[Case]:
    others = (LOOP, STACKED)
    cases = [
        _case(f"mean-alpha-{n}", f"mean of α, {n:,} clients", mean, n, ALPHA, others)
        for n in (10, 100, 1_000, 10_000)
    ]
    title = "mean of 256 × 2 M weights"
    return [
        *cases,
        _case("mean-weights-256", title, mean, 256, 2_000_000, others, quick=False),
        _case("mean-weights-16", "mean of 16 × 2 M weights", mean, 16, 2_000_000, others),
    ]


def _large() -> list[Case]:
    """What only a GPU sorts in reasonable time."""
    title = "median of 255 × 2 M weights"
    others = (MEDIAN, SORT)
    return [_case("median-weights-255", title, median, 255, 2_000_000, others, False, True)]


def _robust() -> list[Case]:
    """Cases of the robust rules that this build has."""
    middling, many = ((11, 200_000), (101, 20_000)), (1_001, ALPHA)
    rules: dict[str, tuple[Callable[..., Setup], tuple[str, ...], tuple[tuple[int, int], ...]]] = {
        "median": (median, (MEDIAN, SORT), (*middling, many)),
        "trimmed_mean": (trimmed_mean, (SORT,), (*middling, many)),
        "krum": (krum, (LOOP, CDIST), middling),
        "multi_krum": (multi_krum, (LOOP, CDIST), middling),
        "geometric_median": (geometric_median, (WEISZFELD,), middling),
    }
    return [
        _case(f"{how}-{clients}", f"{how}, {clients} × {width:,}", make, clients, width, others)
        for how, (make, others, sizes) in rules.items()
        for clients, width in sizes
        if how in METHODS
    ]


CASES = (*_means(), *_robust(), *_large())
