"""What watches a run besides the terminal: several observers at once, and TensorBoard's log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from metadnas_ext.extras import require
from metadnas_ext.federated.runner import METRICS, Observer
from metadnas_ext.methods import Method, RoundFigures
from metadnas_ext.report.result import ClientResult
from metadnas_ext.report.run import read_events

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
_FIGURES = frozenset(field.name for field in fields(RoundFigures))


class Observers:
    """Tells each of several observers, in order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)

    def method_started(self, method: Method, done_rounds: int) -> None:
        for observer in self._observers:
            observer.method_started(method, done_rounds)

    def round_finished(self, method: Method, index: int, figures: RoundFigures) -> None:
        for observer in self._observers:
            observer.round_finished(method, index, figures)

    def clients_finished(self, method: Method, results: Sequence[ClientResult]) -> None:
        for observer in self._observers:
            observer.clients_finished(method, results)


class TensorBoardLog:
    """Writes a run's figures as scalars, a folder a method, below `tensorboard/` of the run folder.

    Rounds are steps of `round/...`, clients are steps of `clients/test_accuracy`. A method's log is
    written anew from `metrics.jsonl` when the method starts or goes on, so that a resumed run has
    each step once, also those from before it was logged. Raises ExtraError without tensorboard.
    """

    def __init__(self, run_dir: Path) -> None:
        require("tensorboard", "tensorboard")
        self._run_dir = run_dir
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def method_started(self, method: Method, done_rounds: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._close()
        folder = self._run_dir / FOLDER / method.name
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(str(folder))
        for _, record in read_events(self._run_dir / METRICS):
            if record.get("method") == method.name and record.get("event") == "round":
                self._round(record["round"], record)
            elif record.get("method") == method.name and record.get("event") == "personalised":
                self._clients(zip(record["clients"], record["test_accuracy"], strict=True))

    def round_finished(self, method: Method, index: int, figures: RoundFigures) -> None:
        self._round(index, figures.to_json())

    def clients_finished(self, method: Method, results: Sequence[ClientResult]) -> None:
        self._clients((result.client, result.test_accuracy) for result in results)

    def _round(self, index: int, figures: Mapping[str, Any]) -> None:
        # Time is left out: TensorBoard has its own, and a replayed log would differ.
        for name, value in figures.items():
            if name in _FIGURES:
                self._scalar(f"round/{name}", value, index)
        self._flush()

    def _clients(self, accuracies: Iterable[tuple[int, float | None]]) -> None:
        for client, accuracy in accuracies:
            self._scalar("clients/test_accuracy", accuracy, client)
        self._flush()

    def _scalar(self, tag: str, value: Any, step: int) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if self._writer is not None and number and math.isfinite(value):
            self._writer.add_scalar(tag, value, step)

    def _flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
