"""NaN and infinity in the training of a cohort: found, and told of whom."""

from __future__ import annotations

import torch
from torch import Tensor

from metadnas_ext.errors import DivergenceError
from metadnas_ext.search.cohort import Cohort

DIVERGENCE_HINT = "a lower client.lr or client.alpha_lr, or client.clip, may help"


class FiniteCheck:
    """Raises DivergenceError, as `check_finite`, on what a training comes across.

    On the CPU at once. Elsewhere reading a number waits for all work given to the device before:
    there each client's first value that is not finite is kept, and `finish` raises.
    """

    def __init__(self, cohort: Cohort, where: str, at_once: bool | None = None) -> None:
        self._cohort, self._where = cohort, where
        self._at_once = cohort.theta.is_cpu if at_once is None else at_once
        self._kept: dict[str, Tensor] = {}  # (G): 0 where all was finite

    def __call__(self, values: Tensor, what: str = "loss", first: int = 0) -> None:
        """values (k, ...), of the clients from row `first`."""
        if self._at_once:
            check_finite(values, self._cohort, self._where, what, first)
            return
        if what not in self._kept:
            self._kept[what] = values.new_zeros(len(self._cohort.splits))
        rows = values.detach()[:, None].flatten(1)  # (k, elements)
        found = torch.where(torch.isfinite(rows), 0.0, rows).sum(1)  # (k)
        own = self._kept[what][first : first + len(rows)]
        own.copy_(torch.where(torch.isfinite(own), found, own))

    def finish(self) -> None:
        """Raises for what was kept."""
        for what, kept in self._kept.items():
            check_finite(kept, self._cohort, self._where, what)


def check_update(cohort: Cohort, where: str) -> None:
    """DivergenceError if a state that training ended with is not finite.

    A loss need not show it: a maximum, as in ReLU, may drop a NaN.
    """
    check_finite(cohort.theta, cohort, where, "update of w")
    check_finite(cohort.running, cohort, where, "update of the running statistics")
    if cohort.alpha is not None:
        check_finite(cohort.alpha, cohort, where, "update of alpha")


def check_finite(
    values: Tensor, cohort: Cohort, where: str, what: str = "loss", first: int = 0
) -> None:
    """DivergenceError naming every client whose part of `values` (k, ...) is not finite.

    `values` belongs to k clients of the cohort from row `first`; the message is about the first of
    those concerned.
    """
    rows = values.detach()[:, None].flatten(1)  # (k, elements)
    bad = ~torch.isfinite(rows)
    if not bool(bad.any()):
        return
    found = {
        cohort.clients[first + row]: float(rows[row, bad[row]][0])
        for row in bad.any(1).nonzero().flatten().tolist()
    }
    client, value = next(iter(found.items()))
    raise DivergenceError(
        f"{where}: the {what} of client {client} is {value}; {DIVERGENCE_HINT}",
        {client: f"{what} is {value}" for client, value in found.items()},
    )
