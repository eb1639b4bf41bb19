"""Parts of θ that stay on the clients between rounds.

"head" is FedPer's choice (Arivazhagan et al., 2019), "bn" FedBN's (Li et al., ICLR 2021): affine
parameters and running statistics of all batch norms; "alpha" leaves every client its own search.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metadnas_ext.data import ClientSplit
from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods.client_rows import ClientRows
from metadnas_ext.nn import NetworkPlan
from metadnas_ext.placement import index_on, to_device
from metadnas_ext.search.cohort import Cohort
from metadnas_ext.search.training import cohort_of


class LocalParts:
    """The local columns of theta (P), running (R) and, if the method has it, alpha (types, E, O).

    A client that takes part starts from its own row, the first time from `start`, which everybody
    knows from the seed: local parts are neither sent nor received. Clients that never took part,
    seen ones too, are personalised from the mean over those that did, by training images; for it
    each of them sends its row once, after the last round. `local` names them, as `server.local`
    does; `start` and every `shared` are (theta, running) or (theta, running, alpha).
    """

    def __init__(
        self,
        federation: Federation,
        plan: NetworkPlan,
        start: Sequence[Tensor],
        local: Sequence[str],
    ) -> None:
        columns = _columns(plan, local)
        if len(start) == 3:
            alpha = start[2].numel() if "alpha" in local else 0
            columns.append(torch.arange(alpha))
        self._columns = [to_device(column, federation.device) for column in columns]
        self._start = self._cut([tensor[None] for tensor in start])[0]
        self._rows = ClientRows("local", federation.seen, len(self._start), federation.device)
        self._sizes = torch.tensor([len(federation.splits[c].train) for c in federation.seen])
        self._seen = set(federation.seen)

    @property
    def numbers(self) -> int:
        """How many of a client's numbers stay on it."""
        return self._rows.width

    @property
    def client_rows(self) -> tuple[ClientRows, ...]:
        """What it adds to a method's rows: none without local parts."""
        return (self._rows,) if self.numbers else ()

    def cohort(self, splits: Sequence[ClientSplit], *shared: Tensor, final: bool) -> Cohort:
        """Clients as they start: from the shared state, with the local parts of who trains.

        `final`: behind the last round, when `shared` has means in place of the local parts.
        """
        cohort, knows = cohort_of(splits, *shared), self._rows.knows
        own_parts = [knows(c) if final else c in self._seen for c in cohort.clients]
        rows = [row for row, own in enumerate(own_parts) if own]
        if not self.numbers or not rows:
            return cohort
        own = self._rows.of([cohort.clients[row] for row in rows], self._start)  # (k, L)
        parts = torch.split(own, [len(columns) for columns in self._columns], dim=1)
        for tensor, columns, part in zip(_tensors(cohort), self._columns, parts, strict=True):
            at = index_on(columns.device, rows)[:, None]
            tensor.view(len(tensor), -1)[at, columns] = part
        return cohort

    def kept(self, cohort: Cohort) -> dict[str, Tensor]:
        """What the clients of a cohort keep of it, by the name of `client_rows`: (G, L)."""
        return {self._rows.name: self._cut(_tensors(cohort))} if self.numbers else {}

    def with_means(self, *shared: Tensor) -> tuple[Tensor, ...]:
        """`shared` with the means over the rows there are in place of the local parts."""
        mean = self._rows.mean(self._sizes) if self.numbers else None
        if mean is None:
            return shared
        parts = torch.split(mean, [len(columns) for columns in self._columns])
        result = tuple(tensor.clone() for tensor in shared)
        for tensor, columns, part in zip(result, self._columns, parts, strict=True):
            tensor.view(-1)[columns] = part
        return result

    def sent(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What clients send of their `tensors` (G, ...), with zeros for the parts that stay."""
        if not self.numbers:
            return tensors
        result = tuple(tensor.clone() for tensor in tensors)
        for tensor, columns in zip(result, self._columns, strict=True):
            tensor.view(len(tensor), -1)[:, columns] = 0
        return result

    def hidden(self, *shared: Tensor) -> tuple[Tensor, ...]:
        """What the server sends of `shared`, with zeros for the parts that stay."""
        return tuple(row[0] for row in self.sent(*(tensor[None] for tensor in shared)))

    def masks(self, *shared: Tensor) -> tuple[Tensor, ...]:
        """Which numbers of `shared` stay on the clients: bool, of the same shapes, on the CPU."""
        result = tuple(torch.zeros(tensor.shape, dtype=torch.bool) for tensor in shared)
        for mask, columns in zip(result, self._columns, strict=False):
            mask.view(-1)[columns.cpu()] = True
        return result

    def _cut(self, tensors: Sequence[Tensor]) -> Tensor:
        """The local columns of tensors (G, ...) side by side: (G, L)."""
        pairs = zip(tensors, self._columns, strict=True)
        return torch.cat([tensor.flatten(1)[:, columns] for tensor, columns in pairs], dim=1)


def head_start(plan: NetworkPlan) -> int:
    """First column of the classifier, whose parameters are a row's last."""
    return plan.parameters.slots["classifier.weight"].offset


def _columns(plan: NetworkPlan, local: Sequence[str]) -> list[Tensor]:
    """Local columns of theta and of running, int64."""
    names = set(plan.head_shapes) if "head" in local else set()
    if "bn" in local:
        norms = (norm.name for block in plan.blocks for norm in block.norms)
        names |= {f"{norm}.{what}" for norm in norms for what in ("weight", "bias")}
    theta = [
        torch.arange(slot.offset, slot.end)
        for name, slot in plan.parameters.slots.items()
        if name in names
    ]
    running = plan.running.size if "bn" in local else 0
    return [torch.cat(theta) if theta else torch.zeros(0, dtype=torch.int64), torch.arange(running)]


def _tensors(cohort: Cohort) -> list[Tensor]:
    tensors = (cohort.theta, cohort.running, cohort.alpha)
    return [tensor for tensor in tensors if tensor is not None]
