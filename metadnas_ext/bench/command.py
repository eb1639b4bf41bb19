"""What `metadnas bench` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from metadnas_ext.bench.case import Case
from metadnas_ext.bench.machine import commit, machine, versions
from metadnas_ext.bench.measure import Settings, Yardsticks, run_case
from metadnas_ext.bench.results import CaseResult, Results
from metadnas_ext.bench.tables import origin, sections
from metadnas_ext.errors import BenchmarkError
from metadnas_ext.report.tables import Grid


def list_cases(cases: Sequence[Case], console: Console) -> None:
    """Prints the registry's cases as a table."""
    rows = [(case.name, case.title, _set_of(case)) for case in cases]
    console.print(Grid(("case", "what", "set"), tuple(rows)).rich())


def _set_of(case: Case) -> str:
    return "quick" if case.quick else "GPU" if case.large else "full"


def run(
    cases: Sequence[Case],
    settings: Settings,
    out: Path | None,
    console: Console,
    *,
    resume: bool = False,
) -> Results:
    """Measures cases, printing each group when it is done; writes JSON after every case, if asked.

    With `resume`, cases that `out` holds already are not measured again. Raises BenchmarkError
    before measuring if `out` cannot be written or gone on with, and on a wrong result.
    """
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise BenchmarkError(f"--out {out}: expected a file in a folder that exists")
    device = torch.device(settings.device)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    results = Results(machine(device), versions(), date, commit(), asdict(settings), [])
    if resume:
        results.cases = _measured_before(results, out)
        done_before = {case.name for case in results.cases}
        cases = [case for case in cases if case.name not in done_before]
    console.print(origin(results), highlight=False, soft_wrap=True)
    yardsticks = Yardsticks(device, settings.tiny)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
    progress = Progress(
        *columns, MofNCompleteColumn(), TimeElapsedColumn(), console=console, transient=True
    )
    with progress:
        task = progress.add_task("", total=len(cases))
        for _, group in groupby(cases, key=lambda case: case.group):
            done = []
            for case in group:

                def tell(what: str, name: str = case.name) -> None:
                    progress.update(task, description=f"{name}: {what}")

                done.append(run_case(case, settings, yardsticks, tell))
                progress.advance(task)
                results.add(done[-1])
                if out is not None:
                    _save(results, out)
            _show(done, console)
    if out is not None:
        console.print(out, highlight=False, soft_wrap=True)
    return results


def _save(results: Results, out: Path) -> None:
    try:
        results.save(out)
    except OSError as error:
        raise BenchmarkError(f"--out {out}: {error.strerror}") from None


def _measured_before(now: Results, out: Path | None) -> list[CaseResult]:
    """Cases in `out`; BenchmarkError if they were measured on another machine or otherwise."""
    if out is None or not out.exists():
        raise BenchmarkError("--resume: expected --out with a file that an earlier run wrote")
    before = Results.load(out)
    for what in ("machine", "versions", "commit", "settings"):
        if getattr(before, what) != getattr(now, what):
            raise BenchmarkError(
                f"--resume: {out} has {what} {getattr(before, what)}, now {getattr(now, what)}"
            )
    return before.cases


def _show(cases: Sequence[CaseResult], console: Console) -> None:
    for section in sections(cases):
        for grid in section.grids:
            console.print(grid.rich(section.title))
        for note in section.notes:
            console.print(note, highlight=False)
