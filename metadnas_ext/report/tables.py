"""Tables of a run: per client, and methods side by side; for the terminal and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from metadnas_ext.report.comparison import Comparison
from metadnas_ext.report.names import (
    NOT_MEASURED,
    byte_count,
    duration,
    method_name,
    number,
    percent,
    quantity,
    unit_name,
)
from metadnas_ext.report.result import ClientResult
from metadnas_ext.report.statistics import summary


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
        rule = tuple("---:" if column else ":---" for column in range(self.width))
        rows = [self.headers, *self.rows]
        if self.footer:
            rows.append(tuple(f"**{cell}**" if cell else "" for cell in self.footer))
        rows = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
        rows.insert(1, rule)
        return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.headers)


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
                r.ended_with,
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


def accuracy_grid(comparison: Comparison) -> Grid:
    """One row a method: test accuracy over clients, unseen clients, harm, and the paired gain."""
    headers = ("method", "mean %", "std", "worst 10 %", "unseen %", "harmed %")
    rows = []
    for row in comparison.rows:
        spread = f" ± {percent(row.seed_std)}" if math.isfinite(row.seed_std) else ""
        cells = [method_name(row.method), percent(row.mean) + spread]
        cells += [percent(v) for v in (row.std, row.worst_decile, row.unseen_mean)]
        cells.append(percent(row.harmed, 1))
        gain = NOT_MEASURED
        if math.isfinite(row.gain):
            gain = f"{_points(row.gain)} [{_points(row.gain_low)}, {_points(row.gain_high)}]"
        rows.append((*cells, gain))
    return Grid((*headers, "gain, 95 %"), tuple(rows))


def cost_grid(comparison: Comparison) -> Grid:
    """One row a method: cost of the networks, violations, time, traffic, speed of learning."""
    headers = ("method", "mean cost", "over", "time", "up", "down", "up/round", "down/round")
    target = "rounds to target"
    if math.isfinite(comparison.target):
        target = f"rounds to {percent(comparison.target, 1)} %"
    matched = any(math.isfinite(row.epochs_to_match) for row in comparison.rows)
    rows = []
    for row in comparison.rows:
        rounds = number(row.rounds_to_target)
        if row.reached and row.seeds > 1:
            rounds += f" ({row.reached} of {row.seeds})"
        cells = [method_name(row.method), quantity(row.mean_cost, row.unit), str(row.violations)]
        traffic = (row.bytes_up, row.bytes_down, row.bytes_up_round, row.bytes_down_round)
        cells += [duration(row.seconds), *map(byte_count, traffic)]
        rows.append((*cells, rounds, *([number(row.epochs_to_match)] if matched else [])))
    return Grid((*headers, target, *(["epochs to match"] if matched else [])), tuple(rows))


def client_table(results: Sequence[ClientResult], title: str | None = None) -> Table:
    """One row a client: sizes, test accuracy, cost against budget, which architecture was kept.

    The footer gives mean ± standard deviation over clients and how many are over budget.
    """
    return client_grid(results).rich(title)


def _points(difference: float) -> str:
    """A difference of accuracies in percentage points, with its sign."""
    return ("+" if difference >= 0 else "") + percent(difference)
