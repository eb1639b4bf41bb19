"""A grid whose nodes are real ClientApps in this process: what a network does wrong, on demand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from metadnas_ext.flower.apps import client_app

Change = Callable[[Message, Message], "Message | None"]
"""From a message and its reply to the reply that comes, or none."""


class LocalGrid:
    """Messages are answered when they are pushed; `change` has the last word on what comes back."""

    def __init__(self, state: Path, partitions: int, change: Change | None = None) -> None:
        self.state, self.partitions = state, partitions
        self.change: Change = change or (lambda _, reply: reply)
        self.nodes: dict[int, tuple[ClientApp, dict[str, Any]]] = {}
        self.replies: dict[str, Message] = {}
        self.pushed: list[Message] = []
        self._numbers = itertools.count(100)
        for partition in range(partitions):
            self.add(partition)

    def add(self, partition: int, **own: Any) -> int:
        """A node of a new number."""
        node = next(self._numbers)
        names = {"partition-id": partition, "num-partitions": self.partitions}
        self.nodes[node] = client_app(self.state), names | own
        return node

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        numbers = []
        for message in messages:
            number = str(next(self._numbers))
            message.metadata.__dict__["_message_id"] = number
            self.pushed.append(message)
            numbers.append(number)
            found = self.nodes.get(message.metadata.dst_node_id)
            if found is None:
                continue
            app, config = found
            context = Context(0, message.metadata.dst_node_id, config, RecordDict(), {})
            try:
                reply = app(message, context)
            except Exception as error:
                code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
                reply = Message(Error(code, f"Traceback\n{error}"), reply_to=message)
            changed = self.change(message, reply)
            if changed is not None:
                changed.metadata.__dict__["_reply_to_message_id"] = number
                self.replies[number] = changed
        return numbers

    def pull_messages(self, numbers: Iterable[str]) -> list[Message]:
        return [self.replies.pop(number) for number in list(numbers) if number in self.replies]
