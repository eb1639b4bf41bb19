"""The meta-learned architecture without a search of the client's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from metadnas_ext.methods.base import Fallback
from metadnas_ext.methods.curve import AdaptationCurve
from metadnas_ext.methods.derived import client_result, finetune, inherited
from metadnas_ext.methods.meta_dnas import MetaDNAS
from metadnas_ext.report.result import ClientResult, Kept
from metadnas_ext.space import Architecture


class SharedAlpha(MetaDNAS):
    """Meta-DNAS's rounds; then the server's α, discretised within each client's budget.

    Weights are inherited from the server's supernet. Fine-tuning gets the local epochs that
    Meta-DNAS spends on adapting and fine-tuning.
    """

    name = "shared_alpha"
    title = "Shared α + fine-tuning"
    kept: ClassVar[Kept] = "meta"

    def architecture(self, client: int) -> Architecture:
        """What the client trains, within its budget."""
        return self.genotype(self.server.alpha, client)

    def fallback(self, client: int) -> Fallback:
        return self._as_it_is(client, self.architecture(client), self.kept)

    def personalise(self, clients: Sequence[int]) -> list[ClientResult]:
        genotypes = {client: self.architecture(client) for client in clients}
        trained = finetune(
            self.federation,
            genotypes,
            inherited(self.plan, self._start(clients), genotypes),
            self.final_epochs,
            "finetune",
            curve=AdaptationCurve(self.federation),
        )
        return [client_result(self.federation, c, trained[c], self.kept) for c in clients]
