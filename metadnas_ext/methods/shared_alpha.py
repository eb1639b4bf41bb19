"""The meta-learned architecture without a search of the client's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from metadnas_ext.config import Config
from metadnas_ext.methods.base import Fallback
from metadnas_ext.methods.derived import client_result
from metadnas_ext.methods.meta_dnas import MetaDNAS
from metadnas_ext.report.result import ClientResult, Kept
from metadnas_ext.space import Architecture


class SharedAlpha(MetaDNAS):
    """Meta-DNAS's rounds; then the server's α, discretised within each client's budget.

    With `server.search_rounds` that is also what clients train in the rounds behind the search.
    Weights are inherited from the server's supernet. Fine-tuning gets the local epochs that
    Meta-DNAS spends on adapting and fine-tuning.
    """

    name = "shared_alpha"
    title = "Shared α + fine-tuning"
    kept: ClassVar[Kept] = "meta"

    @classmethod
    def trains_as(cls, config: Config) -> str:
        return cls.training_key if config.server.search_rounds is None else cls.name

    def architecture(self, client: int) -> Architecture:
        return self.genotype(self.server.alpha, client)

    def fallback(self, client: int) -> Fallback:
        return self._as_it_is(client, self.architecture(client), self.kept)

    def personalise(self, clients: Sequence[int]) -> list[ClientResult]:
        trained = self._train_as({client: self.architecture(client) for client in clients})
        return [client_result(self.federation, c, trained[c], self.kept) for c in clients]
