"""DARTS on each client alone: no server, no sharing."""

from __future__ import annotations

from collections.abc import Sequence

from metadnas_ext.methods.base import WithoutRounds
from metadnas_ext.methods.derived import client_result
from metadnas_ext.methods.searching import Searching
from metadnas_ext.report.result import ClientResult
from metadnas_ext.search.relaxations import relaxation_of


class LocalDARTS(WithoutRounds, Searching):
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

    @property
    def _share(self) -> float:
        """Of the rounds, how many a client takes part in on average."""
        seen = len(self.federation.seen)
        return min(self.config.server.clients_per_round, seen) / seen

    def personalise(self, clients: Sequence[int]) -> list[ClientResult]:
        relaxation = relaxation_of(self.config.client, 0, 1, self.config.personalise.temperature)
        warmup = round(self._share * self.config.client.alpha_warmup)
        adapted = self._adapt(
            clients, self.epochs, "alone", "local search", None, relaxation, warmup
        )
        own = self._finetune(adapted, adapted.genotypes)
        return [
            client_result(self.federation, c, own[c], "personal", adapted.searched[c])
            for c in clients
        ]
