"""The nodes of a run: found, asked, asked again when they have been away. Every wait ends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode

from metadnas_ext.errors import DeadlineError
from metadnas_ext.federated.screening import RefusedError
from metadnas_ext.flower.messages import HELLO

T = TypeVar("T")
POLL_SECONDS = 0.2
GRACE_SECONDS = 30.0  # for a call that is under way when its deadline passes
TRIES = 3  # of a message whose node went away, or whose process died, under it
PASSING = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
)
"""Errors after which the same question may be answered."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a partition's node has answered, or why there is no answer."""

    node: int
    records: RecordDict | None
    reason: str = ""
    late: bool = False


class Nodes:
    """Nodes by partition, over Flower's `grid`.

    Args:
        partitions: how many nodes a run has.
        hello: what a node is asked when it turns up.
        welcome: its partition by what it answers; RefusedError if it cannot take part.
    """

    def __init__(
        self,
        grid: Any,
        partitions: int,
        hello: RecordDict,
        welcome: Callable[[RecordDict], int],
    ) -> None:
        self._grid, self._partitions = grid, partitions
        self._hello, self._welcome = hello, welcome
        self._holders: dict[int, int] = {}  # partition -> node
        self._known: set[int] = set()  # nodes that have been asked who they are
        self._hellos: dict[str, int] = {}  # message -> node
        self._refused: dict[int, str] = {}  # node -> reason

    def wait_for_all(self, seconds: float) -> None:
        """Until every partition has a node. DeadlineError naming those that have none."""
        end = time.monotonic() + seconds
        while len(self._holders) < self._partitions:
            if time.monotonic() > end:
                missing = sorted(set(range(self._partitions)) - self._holders.keys())
                refused = "; ".join(f"node {n}: {why}" for n, why in self._refused.items())
                raise DeadlineError(
                    f"no node for partition {', '.join(map(str, missing))} within {seconds:g} s "
                    f"(flower.start_seconds), of {self._partitions} (flower.nodes)"
                    + (f"; refused: {refused}" if refused else "")
                )
            self._look_around(end)
            time.sleep(POLL_SECONDS)

    def ask(
        self, kind: str, questions: Mapping[int, RecordDict], seconds: float
    ) -> dict[int, Answer]:
        """Answers by partition, each of the node that held it last; all within `seconds`.

        A node that comes back, or another one in its place, is asked again.
        """
        end = time.monotonic() + seconds
        asked: dict[int, tuple[int, str]] = {}  # partition -> node, message
        tries = dict.fromkeys(questions, 0)
        answers: dict[int, Answer] = {}
        while len(answers) < len(questions) and time.monotonic() <= end:
            self._look_around(end)
            for partition in questions.keys() - answers.keys():
                node = self._holders.get(partition)
                if node is not None and asked.get(partition, (None,))[0] != node:
                    message = self._push(kind, node, questions[partition], end)
                    if message is not None:
                        asked[partition] = node, message
            waiting = {m: p for p, (_, m) in asked.items() if p not in answers}
            for message, reply in self._pull(waiting, end):
                partition = waiting[message]
                node = asked[partition][0]
                if not reply.has_error():
                    answers[partition] = Answer(node, reply.content)
                    continue
                reason = f"node {node}: {_first_line(reply.error.reason)}"
                tries[partition] += 1
                if reply.error.code in PASSING and tries[partition] < TRIES:
                    log.warning("partition %s is asked again: %s", partition, reason)
                    del asked[partition]
                    self._forget(node)
                else:
                    answers[partition] = Answer(node, None, reason)
            time.sleep(POLL_SECONDS)
        for partition in questions.keys() - answers.keys():
            node = self._holders.get(partition, 0)
            answers[partition] = Answer(node, None, f"no reply within {seconds:g} s", late=True)
        return answers

    def _look_around(self, end: float) -> None:
        """Greets nodes that are new, forgets those that have gone."""
        there = set(self._within(end, self._grid.get_node_ids))
        for node in self._known - there:
            self._forget(node)
        for node in there - self._known:
            message = self._push(HELLO, node, self._hello, end)
            if message is not None:
                self._known.add(node)
                self._hellos[message] = node
        for message, reply in self._pull(self._hellos, end):
            self._meet(self._hellos.pop(message), reply)

    def _meet(self, node: int, reply: Any) -> None:
        """The newest node of a partition is the one to ask: the one before has been restarted."""
        try:
            if reply.has_error():
                raise RefusedError(_first_line(reply.error.reason))
            partition = self._welcome(reply.content)
        except RefusedError as error:
            log.warning("node %s cannot take part: %s", node, error)
            self._refused[node] = str(error)
        else:
            log.info("node %s holds partition %s", node, partition)
            self._holders[partition] = node

    def _forget(self, node: int) -> None:
        self._known.discard(node)
        self._refused.pop(node, None)
        self._holders = {p: n for p, n in self._holders.items() if n != node}
        self._hellos = {m: n for m, n in self._hellos.items() if n != node}

    def _push(self, kind: str, node: int, records: RecordDict, end: float) -> str | None:
        """The number of a message that is on its way, if it is."""
        life = end - time.monotonic() + 60.0  # seconds; Flower's clocks may differ a little
        message = Message(records, dst_node_id=node, message_type=kind, ttl=max(life, 60.0))
        found = list(self._within(end, lambda: self._grid.push_messages([message])))
        return str(found[0]) if found and found[0] else None

    def _pull(self, messages: Iterable[str], end: float) -> list[tuple[str, Any]]:
        """Replies that have come, by the message they answer."""
        wanted = list(messages)
        if not wanted:
            return []
        found = self._within(end, lambda: self._grid.pull_messages(wanted))
        replies = {str(reply.metadata.reply_to_message_id): reply for reply in found}
        return [(message, reply) for message, reply in replies.items() if message in wanted]

    def _within(self, end: float, call: Callable[[], T]) -> T:
        """Flower's calls wait for the SuperLink for ever: DeadlineError some time after `end`."""
        done: SimpleQueue[tuple[T | None, Exception | None]] = SimpleQueue()

        def run() -> None:
            try:
                done.put((call(), None))
            except Exception as error:
                done.put((None, error))

        threading.Thread(target=run, daemon=True).start()
        left = max(end - time.monotonic(), 0.0) + GRACE_SECONDS
        try:
            value, error = done.get(timeout=left)
        except Empty:
            raise DeadlineError(f"the SuperLink has not answered for {left:.0f} s") from None
        if error is not None:
            raise error
        return value  # type: ignore[return-value]


def _first_line(reason: str | None) -> str:
    lines = [line for line in (reason or "").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason given"
