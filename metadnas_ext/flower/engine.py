"""Rounds of a method over nodes: the server's part here, the clients' elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from metadnas_ext.config import Config
from metadnas_ext.errors import ConfigError, DeadlineError, RunError
from metadnas_ext.federated.client_store import NEVER
from metadnas_ext.federated.federation import Federation
from metadnas_ext.federated.final import screened_results, screened_rows
from metadnas_ext.federated.screening import Arrived, RefusedError, Where, screened
from metadnas_ext.flower import messages
from metadnas_ext.flower.messages import Order
from metadnas_ext.flower.nodes import Answer, Nodes
from metadnas_ext.flower.settings import FlowerSettings
from metadnas_ext.methods import Method, RoundFigures
from metadnas_ext.methods.exchange import Task
from metadnas_ext.methods.rounds import Rounds
from metadnas_ext.placement import to_device
from metadnas_ext.report.result import ClientResult

log = logging.getLogger(__name__)


class OverFlower:
    """An engine whose clients are on nodes of Flower's `grid`.

    run: a name that no other run has, in hexadecimal digits.
    """

    def __init__(
        self, grid: Any, federation: Federation, settings: FlowerSettings, run: str
    ) -> None:
        check_config(federation.config, settings)
        self._federation, self._settings, self._run = federation, settings, run
        hello = messages.hello(federation.config)
        self._nodes = Nodes(grid, settings.nodes, hello, self._welcome)
        self._fingerprint = federation.fingerprint()

    def wait_for_nodes(self) -> None:
        self._nodes.wait_for_all(self._settings.start_seconds)

    def groups(self, federation: Federation) -> Iterable[list[int]]:
        return [list(range(federation.config.data.clients))]

    def round(self, method: Method, history: Sequence[RoundFigures]) -> RoundFigures:
        assert isinstance(method, Rounds)
        index = len(history)
        sampled = self._federation.sample(index)
        task = Task(index, method.shared(final=False))
        answers = self._ask(
            messages.ROUND, method, task, sampled, history, self._settings.round_seconds
        )
        silent = {c: answers[self._partition(c)].reason for c in sampled}
        done = screened(
            method,
            self._where(method, index),
            {client: answers[self._partition(client)].node for client in sampled},
            _arrived(answers),
            {client: reason for client, reason in silent.items() if reason},
        )
        for refused in done.refused:
            log.warning("round %s: node %s", index, refused)
        if done.replies:
            method.step(index, done.replies)
        return method.figures(index, sampled, done.replies, done.dropped)

    def conclude(self, method: Method, history: Sequence[RoundFigures]) -> None:
        """Collects what has stayed on the clients."""
        last = last_rounds(history)
        if not (isinstance(method, Rounds) and method.client_rows and last):
            return
        index, clients = len(history), sorted(last)
        task = Task(index, {})
        answers = self._ask_at_the_end(messages.COLLECT, method, task, clients, history)
        holders = {client: answers[self._partition(client)].node for client in clients}
        where = self._where(method, index)
        found, dropped = screened_rows(method, where, holders, _arrived(answers))
        for client, reason in dropped.items():
            log.warning("what has stayed on client %s is left out: %s", client, reason)
        for rows in method.client_rows:
            for client, own in found.items():
                if rows.name in own:
                    row = to_device(own[rows.name][None], self._federation.device)
                    rows.put([client], row)
        method.collected()

    def personalise(
        self, method: Method, clients: Sequence[int], history: Sequence[RoundFigures]
    ) -> list[ClientResult]:
        index = len(history)
        task = Task(index, method.shared(final=True))
        answers = self._ask_at_the_end(messages.PERSONALISE, method, task, clients, history)
        holders = {client: answers[self._partition(client)].node for client in clients}
        return screened_results(method, self._where(method, index), holders, _arrived(answers))

    def _ask_at_the_end(
        self,
        kind: str,
        method: Method,
        task: Task,
        clients: Sequence[int],
        history: Sequence[RoundFigures],
    ) -> dict[int, Answer]:
        """As `_ask`; without all answers a run has no end: DeadlineError or RunError."""
        seconds = self._settings.final_seconds
        answers = self._ask(kind, method, task, clients, history, seconds)
        for partition, answer in sorted(answers.items()):
            if answer.late:
                raise DeadlineError(
                    f"partition {partition}: {answer.reason} (flower.final_seconds); what there is "
                    f"is saved: start the app again when its node is back"
                )
            if answer.records is None:
                raise RunError(f"partition {partition}: {answer.reason}")
        return answers

    def _ask(
        self,
        kind: str,
        method: Method,
        task: Task,
        clients: Sequence[int],
        history: Sequence[RoundFigures],
        seconds: float,
    ) -> dict[int, Answer]:
        """Answers by partition of those that hold `clients`."""
        last, config = last_rounds(history), self._federation.config
        dealt: dict[int, dict[int, int]] = {}
        for client in clients:
            own = dealt.setdefault(self._partition(client), {})
            own[client] = last.get(client, NEVER)
        questions = {
            partition: Order(self._run, config, method.name, task, own).to_records()
            for partition, own in dealt.items()
        }
        return self._nodes.ask(kind, questions, seconds)

    def _welcome(self, records: Any) -> int:
        """The partition of a node that introduces itself. RefusedError if it does not fit."""
        found = messages.introduced(records)
        partition, partitions = found.get("partition"), found.get("partitions")
        if partitions != self._settings.nodes:
            raise RefusedError(
                f"num-partitions is {partitions!r}, expected {self._settings.nodes} (flower.nodes)"
            )
        if not isinstance(partition, int) or not 0 <= partition < self._settings.nodes:
            raise RefusedError(f"partition-id is {partition!r}, expected 0 to {partitions - 1}")
        if found.get("fingerprint") != self._fingerprint:
            raise RefusedError(
                "its images, their split over clients or its device profiles differ from the "
                "server's"
            )
        return partition

    def _partition(self, client: int) -> int:
        return client % self._settings.nodes

    def _where(self, method: Method, index: int) -> Where:
        return Where(self._run, method.name, index)


def last_rounds(history: Sequence[RoundFigures]) -> dict[int, int]:
    """The last round in which each client's reply counted, of those that had one."""
    last: dict[int, int] = {}
    for index, figures in enumerate(history):
        lost = {one["client"] for one in figures.dropped}
        last |= {client: index for client in figures.clients if client not in lost}
    return last


def check_config(config: Config, settings: FlowerSettings) -> None:
    """ConfigError about what cannot be had over a network."""
    if settings.nodes > config.data.clients:
        raise ConfigError(
            f"flower.nodes is {settings.nodes}, expected at most the {config.data.clients} clients"
        )
    server = config.server
    if "alpha" in server.local and (server.patience > 0 or server.search_rounds is not None):
        raise ConfigError(
            "server.local has alpha, expected it without server.patience and server.search_rounds "
            "over Flower: the server does not know what they ask it for"
        )


def _arrived(answers: dict[int, Answer]) -> list[Arrived]:
    return [
        one
        for answer in answers.values()
        if answer.records is not None
        for one in messages.arrived(answer.node, answer.records)
    ]
