"""Results as tables, for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metadnas_ext.bench.case import OURS
from metadnas_ext.bench.registry import GROUPS
from metadnas_ext.bench.results import CaseResult, Results
from metadnas_ext.report.names import NOT_MEASURED, byte_count, duration
from metadnas_ext.report.tables import Grid

SEARCHES = ("search_step", "search_epoch")


@dataclass(frozen=True)
class Section:
    """A group of cases: its title, one table for each set of variants, and notes."""

    group: str
    title: str
    grids: tuple[Grid, ...]
    notes: tuple[str, ...]


def sections(cases: Sequence[CaseResult], brief: bool = False) -> list[Section]:
    """The groups that have results, in the order of the registry, unknown ones last.

    brief: times and speed-ups only.
    """
    names = list(dict.fromkeys([*GROUPS, *(case.group for case in cases)]))
    by_group = {name: [case for case in cases if case.group == name] for name in names}
    return [_section(name, chosen, brief) for name, chosen in by_group.items() if chosen]


def _section(group: str, cases: Sequence[CaseResult], brief: bool) -> Section:
    by_variants: dict[tuple[str, ...], list[CaseResult]] = {}
    for case in cases:
        by_variants.setdefault(tuple(case.shown()), []).append(case)
    grids = tuple(_grid(variants, chosen, brief) for variants, chosen in by_variants.items())
    notes = [f"{case.title}: {case.note}." for case in cases if case.note]
    notes += [_whole_search(case) for case in cases if group in SEARCHES and not brief]
    return Section(group, GROUPS.get(group, group), grids, tuple(notes))


def origin(results: Results) -> str:
    """One line: processor, threads, versions, date; of a GPU before them."""
    machine, versions = results.machine, results.versions
    gpu = ""
    if "gpu" in machine:
        gpu = f"{machine['gpu']}, {byte_count(float(machine['gpu_memory_bytes']))}; "
    commit = "" if results.commit is None else f" ({results.commit})"
    return (
        f"{gpu}{machine['cpu']}, {machine['threads']} of {machine['cores']} cores, "
        f"{machine['isa']}, {byte_count(float(machine['memory_bytes']))}; "
        f"torch {versions['torch']}, metadnas_ext {versions['metadnas_ext']}{commit}; "
        f"{results.date[:10]}"
    )


def time_text(seconds: float) -> str:
    """'1.23 s', '28.5 ms', '41.0 µs'."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{_three_digits(seconds / 1e-6)} µs"


def ratio_text(ratio: float) -> str:
    return f"{ratio:.0f}×" if ratio >= 99.5 else f"{ratio:.1f}×" if ratio >= 2 else f"{ratio:.2f}×"


def _grid(variants: tuple[str, ...], cases: Sequence[CaseResult], brief: bool) -> Grid:
    columns = [("case", [case.title for case in cases])]
    columns += [
        (name, [time_text(case.shown()[name].median) for case in cases]) for name in variants
    ]
    ratios = [", ".join(map(ratio_text, case.ratios().values())) for case in cases]
    columns.append(("speed-up", ratios))
    if not brief:
        extra = (
            ("GFLOP/s (sgemm)", [_rate(case, case.work.flop, case.sgemm) for case in cases]),
            ("GB/s (copy)", [_rate(case, case.work.bytes, case.copy) for case in cases]),
            ("saved (MB)", [_bytes(case, "saved_bytes") for case in cases]),
            ("peak (MB)", [_bytes(case, "peak_bytes") for case in cases]),
        )
        columns += [(head, cells) for head, cells in extra if set(cells) != {NOT_MEASURED}]
    headers, cells = zip(*columns, strict=True)
    return Grid(headers, tuple(zip(*cells, strict=True)))


def _whole_search(case: CaseResult) -> str:
    """What DARTS's search on CIFAR-10 would take at this rate: 50 epochs of 25,000 images."""
    batch = case.params["batch"]
    steps = 50 * -(-25_000 // batch)
    measured = -(-case.params.get("images", batch) // batch)
    times = {name: duration(steps / measured * v.median) for name, v in case.shown().items()}
    listed = ", ".join(f"{name} {time}" for name, time in times.items())
    return f"{case.title}: {steps:,} steps, as many as DARTS searches CIFAR-10 for, take {listed}."


def _rate(case: CaseResult, work: float | None, yardstick: float | None) -> str:
    """Our rate in billions a second, and its share of the yardstick's in percent."""
    if work is None or yardstick is None:
        return NOT_MEASURED
    rate = work / case.ours.median
    return f"{_three_digits(rate / 1e9)} ({100 * rate / yardstick:.0f} %)"


def _bytes(case: CaseResult, field: str) -> str:
    """Megabytes of the first variant and of ours."""
    values = [getattr(v, field) for n, v in case.shown().items()]
    first, ours = values[0], getattr(case.variants[OURS], field)
    if not first or ours is None:
        return NOT_MEASURED
    return f"{_three_digits(first / 1e6)} → {_three_digits(ours / 1e6)}"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"
