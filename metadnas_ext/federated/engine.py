"""Where the rounds of a method run: in this process, or on other machines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from metadnas_ext import models
from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods import Method, RoundFigures
from metadnas_ext.methods.survivors import personalised
from metadnas_ext.report.result import ClientResult
from metadnas_ext.space import architecture_from_json


class Engine(Protocol):
    """What the runner has done; `history` holds the figures of the rounds so far."""

    def groups(self, federation: Federation) -> Iterable[list[int]]:
        """Clients that are personalised, and committed, together; ascending."""

    def round(self, method: Method, history: Sequence[RoundFigures]) -> RoundFigures:
        """The next round."""

    def conclude(self, method: Method, history: Sequence[RoundFigures]) -> None:
        """Behind the last round: the state is to be the one that clients are personalised from."""

    def personalise(
        self, method: Method, clients: Sequence[int], history: Sequence[RoundFigures]
    ) -> list[ClientResult]:
        """In ascending order of clients."""


class InProcess:
    """Server and clients in this process, cohort by cohort."""

    def groups(self, federation: Federation) -> Iterable[list[int]]:
        return federation.cohorts(list(range(federation.config.data.clients)))

    def round(self, method: Method, history: Sequence[RoundFigures]) -> RoundFigures:
        return method.round(len(history))

    def conclude(self, method: Method, history: Sequence[RoundFigures]) -> None:
        """The state is already there."""

    def personalise(
        self, method: Method, clients: Sequence[int], history: Sequence[RoundFigures]
    ) -> list[ClientResult]:
        return personalised(method, clients)


def save_models(
    folder: Path, federation: Federation, method: str, results: Sequence[ClientResult]
) -> None:
    """Writes the networks that came with results, if the run keeps them."""
    if not federation.config.run.save_models:
        return
    store, shape = federation.store, federation.shape
    for result in results:
        if result.weights and result.genotype is not None:
            genotype = architecture_from_json(result.genotype)
            card = models.Card(shape, genotype, store.classes, store.mean, store.std)
            models.save(models.model_path(folder, method, result.client), card, result.weights)
