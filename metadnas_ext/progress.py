"""What a run shows on the terminal: a bar, a line a round, tables at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods import Method, RoundFigures
from metadnas_ext.placement import CPU
from metadnas_ext.report.comparison import Comparison
from metadnas_ext.report.names import method_name, percent, quantity
from metadnas_ext.report.result import ClientResult
from metadnas_ext.report.study import Study
from metadnas_ext.report.tables import accuracy_grid, client_table, cost_grid


def print_summary(console: Console, study: Study, comparison: Comparison) -> None:
    """The final tables: the clients of one method and seed, or methods beside each other."""
    if len(study.runs) == 1 and len(comparison.rows) == 1:
        method = comparison.rows[0].method
        rows = [result for _, result in study.clients(method)]
        console.print(client_table(rows, method_name(method)))
    else:
        console.print(accuracy_grid(comparison).rich())
        console.print(cost_grid(comparison).rich())


class Display:
    """An observer of the runner that prints."""

    def __init__(self, console: Console, federation: Federation, run_dir: Path) -> None:
        self._console = console
        self._federation = federation
        self._run_dir = run_dir
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._rounds: TaskID | None = None
        self._clients: TaskID | None = None

    def __enter__(self) -> Display:
        self._introduce()
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def method_started(self, method: Method, done_rounds: int) -> None:
        for task in (self._rounds, self._clients):
            if task is not None:
                self._progress.remove_task(task)
        self._rounds = self._progress.add_task(
            f"{method.title}: rounds", total=method.rounds, completed=done_rounds
        )
        self._clients = self._progress.add_task(
            f"{method.title}: clients", total=self._federation.config.data.clients
        )

    def round_finished(self, method: Method, index: int, figures: RoundFigures) -> None:
        parts = [f"{method.title}  round {index + 1}/{method.rounds}"]
        if figures.train_loss is not None:
            parts.append(f"train loss {figures.train_loss:.3f}")
        if figures.val_loss is not None:
            parts.append(f"val loss {figures.val_loss:.3f}")
        if figures.val_accuracy is not None:
            parts.append(f"val accuracy {percent(figures.val_accuracy)} %")
        if figures.expected_cost is not None and self._federation.unit is not None:
            parts.append(f"expected cost {quantity(figures.expected_cost, self._federation.unit)}")
        elif figures.budget_use is not None:
            parts.append(f"expected cost {percent(figures.budget_use, 1)} % of the budget")
        if figures.alpha_entropy is not None:
            parts.append(f"entropy {figures.alpha_entropy:.3f}")
        self._print("  ".join(parts))
        if figures.lost:
            self._print("  every client was dropped: the shared model stays as it is")
        for one in figures.dropped:
            self._print(f"  client {one['client']} dropped: {one['reason']}")
        if self._rounds is not None:
            self._progress.advance(self._rounds)

    def clients_finished(self, method: Method, results: Sequence[ClientResult]) -> None:
        if self._clients is not None:
            self._progress.advance(self._clients, len(results))
        for result in results:
            if result.diverged is not None:
                self._print(
                    f"  client {result.client} diverged ({result.diverged}): "
                    f"its network has had no training of its own"
                )

    def _introduce(self) -> None:
        store, federation = self._federation.store, self._federation
        self._print(
            f"{store.name}: {len(store)} images of {store.image_size}x{store.image_size}, "
            f"{len(store.classes)} classes, over {len(federation.splits)} clients "
            f"({len(federation.unseen)} unseen)"
            + ("" if federation.device == CPU else f", on {federation.device}")
        )
        self._print(f"run folder: {self._run_dir}")

    def _print(self, text: str) -> None:
        # What clients have sent may be in it: brackets are no markup.
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)
