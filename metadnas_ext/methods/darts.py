"""DARTS on each client alone: no server, no sharing."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from metadnas_ext.methods.base import RoundFigures
from metadnas_ext.methods.derived import client_result, finetune, inherit
from metadnas_ext.methods.meta_dnas import MetaDNAS
from metadnas_ext.report.result import ClientResult
from metadnas_ext.search import discretize
from metadnas_ext.space import Architecture


class LocalDARTS(MetaDNAS):
    """Every client searches from the same random start on its own data, within its budget.

    It gets as many local epochs of search as a client of Meta-DNAS has on average over the rounds,
    plus those of adaptation, then the same fine-tuning.
    """

    name = "darts"
    title = "DARTS per client"
    training_key = "darts"

    @property
    def rounds(self) -> int:
        return 0

    def round(self, index: int) -> RoundFigures:
        raise RuntimeError("DARTS on each client alone has no rounds")

    def state(self) -> dict[str, Tensor]:
        return {}  # nothing is learned before personalisation

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        if tensors:
            raise ValueError("DARTS on each client alone has no state")

    def shared_genotype(self) -> Architecture | None:
        return None

    @property
    def epochs(self) -> int:
        server = self.config.server
        share = min(server.clients_per_round, len(self.federation.seen)) / len(self.federation.seen)
        rounds = round(server.rounds * share * self.config.client.epochs)
        return rounds + self.config.personalise.adapt_epochs

    def personalise(self, clients: Sequence[int]) -> list[ClientResult]:
        federation, settings = self.federation, self.config.personalise
        cohort, _ = self.search(
            clients, self.epochs, "alone", "local search", None, settings.temperature
        )
        assert cohort.alpha is not None
        genotypes, start = {}, {}
        for row, client in enumerate(cohort.clients):
            alpha, budget = cohort.alpha[row], float(federation.budgets[client])
            genotypes[client] = discretize(tuple(alpha), federation.costs, budget)
            start[client] = inherit(
                self.plan, genotypes[client], cohort.theta[row], cohort.running[row]
            )
        trained = finetune(federation, genotypes, start, settings.finetune_epochs, "finetune")
        return [client_result(federation, c, trained[c], "personal") for c in clients]
