"""What clients keep from one round to the next."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metadnas_ext.ops import weighted_mean
from metadnas_ext.placement import index_on, to_device


class ClientRows:
    """One row of `width` numbers for each of `clients`, once it has put one there, on `device`.

    `name` tells its tensors in a method's state from others.
    """

    def __init__(self, name: str, clients: Sequence[int], width: int, device: torch.device) -> None:
        self.width = width
        self.name = name
        self._index = {client: index for index, client in enumerate(clients)}
        self._rows = torch.zeros(len(clients), width, device=device)
        self._known = torch.zeros(len(clients))  # asked for one by one, so on the CPU

    @property
    def names(self) -> tuple[str, str]:
        """Of its tensors in the state."""
        return f"{self.name}_rows", f"{self.name}_known"

    def state(self) -> dict[str, Tensor]:
        rows, known = self.names
        return {rows: self._rows, known: self._known}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self._rows, known = (tensors[name] for name in self.names)
        self._known = known.cpu()

    def of(self, clients: Sequence[int], default: Tensor) -> Tensor:
        """The clients' rows (k, width); `default` ((width) or (k, width)) where there is none."""
        rows = default.expand(len(clients), -1).clone()
        for at, client in enumerate(clients):
            if self.knows(client):
                rows[at] = self._rows[self._index[client]]
        return rows

    def row(self, client: int) -> Tensor:
        """The row (width) that the client has put here."""
        return self._rows[self._index[client]]

    def knows(self, client: int) -> bool:
        """Whether the client has put a row here."""
        index = self._index.get(client)
        return index is not None and bool(self._known[index])

    def put(self, clients: Sequence[int], rows: Tensor) -> None:
        """Replaces the clients' rows (k, width)."""
        at = [self._index[client] for client in clients]
        self._rows[index_on(self._rows.device, at)] = rows
        self._known[at] = 1

    def mean(self, weights: Tensor) -> Tensor | None:
        """Mean of the rows there are (width), clients weighed by `weights` (all), on the CPU."""
        share = weights.to(self._rows.dtype) * self._known
        if not bool(share.any()):
            return None
        return weighted_mean(self._rows, to_device(share, self._rows.device))
