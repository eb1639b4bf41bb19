"""Tasks and replies as Flower's records. Tensors go packed, as bytes: nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from metadnas_ext.config import Config
from metadnas_ext.errors import RunError
from metadnas_ext.federated.packing import pack, unpack
from metadnas_ext.federated.screening import Arrived
from metadnas_ext.methods.exchange import Task

HELLO, ROUND, COLLECT, PERSONALISE = "query", "train", "query.collect", "evaluate"
"""Types of messages."""

_TASK, _STATE, _REPLIES, _NODE = "task", "state", "replies", "node"


@dataclass(frozen=True)
class Order:
    """A task for some clients of a node, with all that the node does not know.

    last: by client, the last round in which its reply counted.
    """

    run: str
    config: Config
    method: str
    task: Task
    last: dict[int, int]

    def to_records(self) -> RecordDict:
        clients = sorted(self.last)
        record = ConfigRecord(
            {
                "run": self.run,
                "config": json.dumps(self.config.to_json()),
                "method": self.method,
                "index": self.task.index,
                "clients": clients,
                "last": [self.last[client] for client in clients],
            }
        )
        state = ArrayRecord({_STATE: _array(pack({}, self.task.tensors))})
        return RecordDict({_TASK: record, _STATE: state})

    @classmethod
    def of(cls, records: RecordDict) -> Order:
        """The inverse of `to_records`. RunError if it is not that."""
        try:
            record = records.config_records[_TASK]
            _, tensors = unpack(records.array_records[_STATE][_STATE].data)
            return cls(
                str(record["run"]),
                Config.from_json(json.loads(str(record["config"]))),
                str(record["method"]),
                Task(int(record["index"]), tensors),
                dict(zip(record["clients"], record["last"], strict=True)),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise RunError(f"the server's message is not an order: {error!r}") from None


def replies_to_records(replies: Mapping[int, bytes]) -> RecordDict:
    arrays = {str(client): _array(data) for client, data in replies.items()}
    return RecordDict({_REPLIES: ArrayRecord(arrays)})


def arrived(node: int, records: RecordDict) -> list[Arrived]:
    """What a node has sent, whatever it is."""
    found = records.array_records.get(_REPLIES) or {}
    return [
        Arrived(node, int(name), array.data)
        for name, array in found.items()
        if name.isascii() and name.isdecimal() and len(name) < 10
    ]


def hello(config: Config) -> RecordDict:
    """Asks a node who it is."""
    return RecordDict({_NODE: ConfigRecord({"config": json.dumps(config.to_json())})})


def config_of(records: RecordDict) -> Config:
    """That of a `hello`."""
    return Config.from_json(json.loads(str(records.config_records[_NODE]["config"])))


def introduction(partition: int, partitions: int, fingerprint: str) -> RecordDict:
    """The answer to `hello`: which clients a node holds, a hash of their data and budgets."""
    values = {"partition": partition, "partitions": partitions, "fingerprint": fingerprint}
    return RecordDict({_NODE: ConfigRecord(values)})


def introduced(records: RecordDict) -> dict[str, Any]:
    """The values of an introduction; empty if it is none."""
    return dict(records.config_records.get(_NODE) or {})


def _array(data: bytes) -> Array:
    return Array(dtype="uint8", shape=(len(data),), stype="safetensors", data=data)
