"""Tables of a run: per client, and methods side by side; for the terminal and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from metadnas_ext.report.names import (
    NOT_MEASURED,
    byte_count,
    duration,
    method_name,
    percent,
    quantity,
    unit_name,
)
from metadnas_ext.report.result import ClientResult


@dataclass(frozen=True)
class Grid:
    """A table as plain text cells; the first column is left-aligned, the others right."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    footer: tuple[str, ...] | None = None

    def rich(self, title: str | None = None) -> Table:
        """The table for a terminal."""
        table = Table(
            title=None if title is None else Text(title),
            show_footer=bool(self.footer),
            box=SIMPLE_HEAD,  # narrow: a client's row fits 80 columns
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        footer = self.footer or ("",) * len(self.headers)
        # Text, not str: a name such as "[red]" is a name and not markup.
        for column, (header, foot) in enumerate(zip(self.headers, footer, strict=True)):
            justify: JustifyMethod = "right" if column else "left"
            table.add_column(Text(header), Text(foot), justify=justify)
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def markdown(self) -> str:
        """The table in Markdown; the footer is a last row in bold."""
        rows = [self.headers, tuple("---:" if column else ":---" for column in range(self.width))]
        rows += [tuple(cell.replace("|", "\\|") for cell in row) for row in self.rows]
        if self.footer:
            rows.append(tuple(f"**{cell}**" if cell else "" for cell in self.footer))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.headers)


def summary(results: Sequence[ClientResult]) -> dict[str, float]:
    """Figures over clients; accuracies in 0..1, NaN where no client counts.

    `mean` and `std` (population), `worst_decile` (mean of the lowest 10 % of clients, rounded up to
    whole clients), `seen_mean`, `unseen_mean`, `mean_cost` (NaN if clients differ in unit),
    `violations` (clients over budget), `clients`, and `missing`: clients without a finite test
    accuracy, which the other figures leave out.
    """
    measured = [r for r in results if math.isfinite(r.test_accuracy)]
    accuracy = sorted(r.test_accuracy for r in measured)
    one_unit = len({r.unit for r in results}) == 1
    return {
        "clients": len(results),
        "missing": len(results) - len(measured),
        "mean": _mean(accuracy),
        "std": float(np.std(accuracy)) if accuracy else math.nan,
        "worst_decile": _mean(accuracy[: math.ceil(len(accuracy) / 10)]),
        "seen_mean": _mean([r.test_accuracy for r in measured if r.seen]),
        "unseen_mean": _mean([r.test_accuracy for r in measured if not r.seen]),
        "mean_cost": _mean([r.cost for r in results if math.isfinite(r.cost)] if one_unit else []),
        "violations": sum(r.over_budget for r in results),
    }


def client_grid(results: Sequence[ClientResult]) -> Grid:
    """One row a client, by id; the footer sums up. One unit for all stands in the header."""
    units = {unit_name(r.unit) for r in results}
    unit = units.pop() if len(units) == 1 else ""

    def amount(value: float | None, r: ClientResult) -> str:
        return quantity(value, r.unit).removesuffix(f" {unit}")

    rows = []
    for r in sorted(results, key=lambda r: r.client):
        used = r.cost / r.budget if r.budget else math.nan
        share = f"{percent(used, 1)} %" if math.isfinite(used) else NOT_MEASURED
        rows.append(
            (
                str(r.client),
                "seen" if r.seen else "unseen",
                str(r.train_size),
                str(r.test_size),
                percent(r.test_accuracy, 1),
                amount(r.cost, r),
                amount(r.budget, r),
                f"{share} (over)" if r.over_budget else share,
                r.kept,
            )
        )
    figures = summary(results)
    count = f"{len(results)} client" + ("" if len(results) == 1 else "s")
    missing = f"{figures['missing']:.0f} without a result" if figures["missing"] else ""
    accuracy = f"{percent(figures['mean'], 1)} ± {percent(figures['std'], 1)}"
    over = f"{figures['violations']:.0f} over"
    cost = f"cost, {unit}" if unit else "cost"
    headers = ("client", "group", "train", "test", "accuracy %", cost, "budget", "used", "kept")
    return Grid(headers, tuple(rows), (count, missing, "", "", accuracy, "", "", over, ""))


def compare_grid(
    results_by_method: Mapping[str, Sequence[ClientResult]],
    seconds: Mapping[str, float] | None = None,
    traffic: Mapping[str, float] | None = None,
) -> Grid:
    """One row a method, in the order given; see `compare_table`."""
    headers = ["method", "mean %", "std", "worst 10 %", "unseen %", "mean cost", "over"]
    headers += ["time"] if seconds is not None else []
    headers += ["traffic"] if traffic is not None else []
    rows = []
    for method, results in results_by_method.items():
        figures = summary(results)
        row = [method_name(method)]
        row += [percent(figures[key]) for key in ("mean", "std", "worst_decile", "unseen_mean")]
        row.append(quantity(figures["mean_cost"], results[0].unit if results else ""))
        row.append(f"{figures['violations']:.0f}")
        if seconds is not None:
            row.append(duration(seconds.get(method, math.nan)))
        if traffic is not None:
            row.append(byte_count(traffic.get(method, math.nan)))
        rows.append(tuple(row))
    return Grid(tuple(headers), tuple(rows))


def client_table(results: Sequence[ClientResult], title: str | None = None) -> Table:
    """One row a client: sizes, test accuracy, cost against budget, which architecture was kept.

    The footer gives mean ± standard deviation over clients and how many are over budget.
    """
    return client_grid(results).rich(title)


def compare_table(
    results_by_method: Mapping[str, Sequence[ClientResult]],
    seconds: Mapping[str, float] | None = None,
    traffic: Mapping[str, float] | None = None,
    title: str | None = None,
) -> Table:
    """Methods side by side: mean, spread and worst decile over clients, unseen clients, cost.

    `seconds` (search time) and `traffic` (bytes, up and down) are by method, each a column if
    given.
    """
    return compare_grid(results_by_method, seconds, traffic).rich(title)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
