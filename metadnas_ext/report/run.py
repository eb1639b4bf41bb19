"""Reading a run folder: `config.json`, `metrics.jsonl`, and at its end results and genotypes."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from metadnas_ext.errors import RunError
from metadnas_ext.report import fields
from metadnas_ext.report.result import ClientResult

Figures = TypeVar("Figures")
Genotype = dict[str, Any]
"""An architecture as JSON: `normal`, `normal_concat`, `reduce`, `reduce_concat`; or `arch`."""


@dataclass(frozen=True, slots=True)
class Round:
    """Figures of one federated round; NaN marks one that was not measured."""

    method: str
    round: int
    clients: tuple[int, ...]
    train_loss: float
    val_loss: float
    val_accuracy: float
    alpha_entropy: float
    """Nats per edge."""
    client_entropy: float
    expected_cost: float
    skips: float
    """Of the server's architecture; `client_` figures are means over the round's clients."""
    client_skips: float
    hessian_eigenvalue: float
    bytes_up: float
    bytes_down: float
    seconds: float

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Round:
        """Read one 'round' event. Raises RunError naming the key that is wrong."""
        clients = record.get("clients") or []
        if not isinstance(clients, list) or not all(isinstance(c, int) for c in clients):
            raise RunError(f"'clients' must be a list of client ids, got {clients!r}")
        return cls(
            method=fields.text(record, "method"),
            round=fields.integer(record, "round"),
            clients=tuple(clients),
            train_loss=fields.number(record, "train_loss"),
            val_loss=fields.number(record, "val_loss"),
            val_accuracy=fields.fraction(record, "val_accuracy"),
            alpha_entropy=fields.number(record, "alpha_entropy"),
            client_entropy=fields.number(record, "client_entropy"),
            expected_cost=fields.number(record, "expected_cost"),
            skips=fields.number(record, "skips"),
            client_skips=fields.number(record, "client_skips"),
            hessian_eigenvalue=fields.number(record, "hessian_eigenvalue"),
            bytes_up=fields.number(record, "bytes_up"),
            bytes_down=fields.number(record, "bytes_down"),
            seconds=fields.number(record, "seconds"),
        )


@dataclass(frozen=True)
class Run:
    """A run folder in memory; every mapping is keyed by the method's identifier."""

    path: Path
    config: dict[str, Any]
    rounds: dict[str, list[Round]]
    results: dict[str, list[ClientResult]] = field(default_factory=dict)
    genotypes: dict[str, dict[str, Genotype | None]] = field(default_factory=dict)
    """Per method: 'meta' and client ids (as strings) to genotypes."""
    personal_seconds: dict[str, float] = field(default_factory=dict)
    """Per method: time spent on personalising clients."""
    trained_as: dict[str, str] = field(default_factory=dict)
    """Methods that went on from the rounds of another one, to that one."""
    ended: bool = False
    """Whether `results.json` is there."""

    @property
    def seed(self) -> int:
        """Of everything random; 0 if the configuration does not say."""
        return self.setting("run", "seed") or 0

    @property
    def methods(self) -> list[str]:
        """All methods, in the order in which they ran."""
        return list(dict.fromkeys([*self.rounds, *self.results, *self.genotypes]))

    def renamed(self, suffix: str) -> Run:
        """The same run with `suffix` behind every method's identifier."""

        def named(figures: dict[str, Figures]) -> dict[str, Figures]:
            return {method + suffix: value for method, value in figures.items()}

        return replace(
            self,
            rounds=named(self.rounds),
            results=named(self.results),
            genotypes=named(self.genotypes),
            personal_seconds=named(self.personal_seconds),
            trained_as={one + suffix: other + suffix for one, other in self.trained_as.items()},
        )

    def setting(self, section: str, name: str) -> int | None:
        """A whole number of the configuration; None if it does not say."""
        values = self.config.get(section)
        value = values.get(name) if isinstance(values, dict) else None
        return value if isinstance(value, int) else None

    def history(self, method: str) -> list[Round]:
        """The rounds behind a method's results, its own or those it went on from."""
        return self.rounds.get(self.trained_as.get(method, method), [])

    def seconds(self, method: str) -> float:
        """Time of search: rounds and personalisation. NaN if neither was recorded."""
        rounds, personal = self.history(method), self.personal_seconds.get(method)
        if not rounds and personal is None:
            return math.nan
        return sum(entry.seconds for entry in rounds) + (personal or 0.0)

    def traffic(self, method: str) -> tuple[float, float]:
        """Bytes up and down over all rounds. NaN if nothing of the method was recorded."""
        rounds = self.history(method)
        if not rounds and method not in self.personal_seconds:
            return math.nan, math.nan
        return sum(r.bytes_up for r in rounds), sum(r.bytes_down for r in rounds)


def load_run(path: str | Path) -> Run:
    """Read a run folder, also one whose run was interrupted or still goes on.

    A torn last line of `metrics.jsonl` is skipped with a warning. If a round occurs twice (it was
    repeated after a crash), the later line counts. Raises RunError naming the file, and the line
    where there is one, if the folder is not a run folder or a file in it is damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder; expected the folder of a run")
    for name in ("config.json", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise RunError(f"{folder} is not a run folder: {name} is missing")
    events = read_events(folder / "metrics.jsonl")
    results_file = folder / "results.json"
    genotypes_file = folder / "genotypes.json"
    ended = results_file.is_file()
    return Run(
        path=folder,
        config=_read_object(folder / "config.json"),
        rounds=_rounds(events),
        results=_read_results(results_file) if ended else {},
        genotypes=_read_genotypes(genotypes_file) if genotypes_file.is_file() else {},
        personal_seconds=_personal_seconds(events),
        trained_as=_trained_as(events),
        ended=ended,
    )


def read_events(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """The events of a `metrics.jsonl`, each with the file and line for messages.

    A torn last line is skipped with a warning. RunError if another one is damaged.
    """
    lines = [(n, line) for n, line in enumerate(_read_bytes(file).split(b"\n"), 1) if line.strip()]
    events = []
    for number, line in lines:
        where = f"{file}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == lines[-1][0]:
                message = f"{where} is torn (the run was cut off while writing it); skipped"
                warnings.warn(message, stacklevel=3)
                break
            raise RunError(f"{where} is not valid JSON: {error}") from error
        events.append((where, fields.mapping(value, where)))
    return events


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_bytes(file))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{file} is not valid JSON: {error}") from error
    return fields.mapping(value, str(file))


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror}") from error


def _rounds(events: list[tuple[str, dict[str, Any]]]) -> dict[str, list[Round]]:
    rounds: dict[str, dict[int, Round]] = {}
    for where, record in events:
        if record.get("event") != "round":
            continue
        try:
            entry = Round.from_json(record)
        except RunError as error:
            raise RunError(f"{where}: {error}") from error
        rounds.setdefault(entry.method, {})[entry.round] = entry
    return {
        method: [entries[index] for index in sorted(entries)] for method, entries in rounds.items()
    }


def _personal_seconds(events: list[tuple[str, dict[str, Any]]]) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for where, record in _personalised(events):
        try:
            spent = fields.number(record, "seconds")
        except RunError as error:
            raise RunError(f"{where}: {error}") from error
        if math.isfinite(spent):
            seconds[record["method"]] = seconds.get(record["method"], 0.0) + spent
    return seconds


def _trained_as(events: list[tuple[str, dict[str, Any]]]) -> dict[str, str]:
    return {
        record["method"]: record["trained_as"]
        for _, record in _personalised(events)
        if isinstance(record.get("trained_as"), str)
    }


def _personalised(events: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (where, record)
        for where, record in events
        if record.get("event") == "personalised" and isinstance(record.get("method"), str)
    ]


def _read_results(file: Path) -> dict[str, list[ClientResult]]:
    results: dict[str, list[ClientResult]] = {}
    for method, entries in _read_object(file).items():
        if not isinstance(entries, list):
            raise RunError(f"{file}, {method}: expected a list of clients")
        results[method] = []
        for index, entry in enumerate(entries):
            where = f"{file}, {method}, entry {index}"
            try:
                results[method].append(ClientResult.from_json(fields.mapping(entry, "the entry")))
            except RunError as error:
                raise RunError(f"{where}: {error}") from error
    return results


def _read_genotypes(file: Path) -> dict[str, dict[str, Genotype | None]]:
    genotypes: dict[str, dict[str, Genotype | None]] = {}
    for method, entries in _read_object(file).items():
        genotypes[method] = {
            owner: None if value is None else fields.mapping(value, f"{file}, {method}, {owner}")
            for owner, value in fields.mapping(entries, f"{file}, {method}").items()
        }
    return genotypes
