"""DARTS on each client alone: no server, no sharing."""

from __future__ import annotations

from collections.abc import Sequence

from metadnas_ext.methods.base import WithoutRounds
from metadnas_ext.methods.derived import client_result
from metadnas_ext.methods.meta_dnas import MetaDNAS
from metadnas_ext.report.result import ClientResult


class LocalDARTS(WithoutRounds, MetaDNAS):
    """Every client searches from the same random start on its own data, within its budget.

    It gets as many local epochs of search as a client of Meta-DNAS has on average over the rounds,
    plus those of adaptation, then the same fine-tuning.
    """

    name = "darts"
    title = "DARTS per client"
    training_key = "darts"

    @property
    def epochs(self) -> int:
        """Local epochs of search."""
        return self.round_epochs + self.config.personalise.adapt_epochs

    def personalise(self, clients: Sequence[int]) -> list[ClientResult]:
        adapted = self._adapt(clients, self.epochs, "alone", "local search", None)
        own = self._finetune(adapted, adapted.genotypes)
        return [
            client_result(self.federation, c, own[c], "personal", adapted.searched[c])
            for c in clients
        ]
