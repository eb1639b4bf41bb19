"""Each client trains alone: what federation has to beat."""

from __future__ import annotations

from collections.abc import Sequence

from metadnas_ext.methods.base import WithoutRounds
from metadnas_ext.methods.curve import AdaptationCurve
from metadnas_ext.methods.derived import train_locally
from metadnas_ext.methods.fedavg import FedAvgFineTuned
from metadnas_ext.report.result import ClientResult


class LocalOnly(WithoutRounds, FedAvgFineTuned):
    """FedAvg + fine-tuning without the server: FedAvg's architecture, trained from random weights.

    A client trains alone for as many local epochs as one of FedAvg has on average over the rounds,
    then fine-tunes as all do.
    """

    name = "local_only"
    title = "Local only"
    training_key = "local_only"

    def personalise(self, clients: Sequence[int]) -> list[ClientResult]:
        cohort, curve = self._own(clients), AdaptationCurve(self.federation)
        watch = curve.follow(self.plan, cohort, 0, self.round_epochs)
        train_locally(self.federation, self.plan, cohort, self.round_epochs, None, "alone", watch)
        return self._finish(clients, cohort, curve, before=self.round_epochs)
