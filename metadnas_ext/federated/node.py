"""A machine that holds some of the clients: their part in rounds, what they keep, their end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from metadnas_ext.errors import RunError
from metadnas_ext.federated.client_store import NEVER, ClientStore
from metadnas_ext.federated.engine import save_models
from metadnas_ext.federated.federation import Federation
from metadnas_ext.federated.packing import pack
from metadnas_ext.federated.screening import Where, packed_excuse, packed_reply
from metadnas_ext.methods import METHODS, Method
from metadnas_ext.methods.exchange import Part, Task
from metadnas_ext.methods.rounds import Rounds
from metadnas_ext.methods.survivors import personalised, without_diverged
from metadnas_ext.placement import to_device

Sent = dict[int, bytes]
"""By client."""


def clients_of(partition: int, partitions: int, clients: int) -> range:
    """The clients that one of a number of nodes holds."""
    return range(partition, clients, partitions)


class Node:
    """Answers for `method` of a run; everything it keeps is below `folder`.

    `last`: for each client the last round in which its reply counted, or NEVER.
    """

    def __init__(self, federation: Federation, folder: Path, run: str, method: str) -> None:
        if method not in METHODS:
            raise RunError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
        self._federation, self._run = federation, run
        self._method = METHODS[method](federation)
        self._store = ClientStore(folder, run, self._method.trains_as(federation.config))

    def round(self, task: Task, last: Mapping[int, int]) -> Sent:
        """The clients' replies to a task, or their excuses; what they keep is on disk by then."""
        method, where = self._method, self._where(task)
        if not isinstance(method, Rounds):
            raise RunError(f"{method.title} has no rounds")
        method.receive(task.tensors)
        ready, excuses = self._load(last)
        parts, diverged = without_diverged(
            self._federation.cohorts(ready), lambda group: method.work(task.index, group)
        )
        sent: Sent = {}
        for part in parts:
            self._keep(method, part, task.index, last)
            sent |= {reply.client: packed_reply(where, reply) for reply in part.replies}
        excuses |= diverged
        return sent | {c: packed_excuse(where, c, reason) for c, reason in excuses.items()}

    def collect(self, task: Task, last: Mapping[int, int]) -> Sent:
        """Of each client what has stayed on it, for the mean that others start from."""
        where = self._where(task)
        ready, excuses = self._load(last)
        sent = {
            client: pack({**vars(where), "client": client}, _rows(self._method, client))
            for client in ready
        }
        return sent | {c: packed_excuse(where, c, reason) for c, reason in excuses.items()}

    def personalise(self, task: Task, last: Mapping[int, int]) -> Sent:
        """Results of the clients; their networks stay here."""
        method, where = self._method, self._where(task)
        method.receive(task.tensors)
        ready, excuses = self._load(last)
        sent: Sent = {}
        for group in self._federation.cohorts(ready):
            results = personalised(method, group)
            save_models(self._store.run_folder, self._federation, method.name, results)
            for result in results:
                header = {**vars(where), "client": result.client, "result": result.to_json()}
                sent[result.client] = pack(header, {})
        return sent | {c: packed_excuse(where, c, reason) for c, reason in excuses.items()}

    def _where(self, task: Task) -> Where:
        return Where(self._run, self._method.name, task.index)

    def _load(self, last: Mapping[int, int]) -> tuple[list[int], dict[int, str]]:
        """Clients whose rows are as they should be, and why those of the others are not."""
        ready, excuses = [], {}
        for client, behind in sorted(last.items()):
            try:
                if behind != NEVER and self._method.client_rows:
                    _put(self._method, client, self._store, behind)
                ready.append(client)
            except RunError as error:
                excuses[client] = str(error)
        return ready, excuses

    def _keep(self, method: Rounds, part: Part, index: int, last: Mapping[int, int]) -> None:
        method.keep(part)
        if method.client_rows:
            for client in part.clients:
                self._store.save(client, index, _rows(method, client), last[client])


def _rows(method: Method, client: int) -> dict[str, Tensor]:
    return {rows.name: rows.row(client) for rows in method.client_rows if rows.knows(client)}


def _put(method: Method, client: int, store: ClientStore, behind: int) -> None:
    found = store.load(client, behind)
    for rows in method.client_rows:
        if rows.name in found:
            rows.put([client], to_device(found[rows.name][None], method.federation.device))
