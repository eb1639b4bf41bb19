"""Architectures drawn at random: what a search has to beat."""

from __future__ import annotations

from typing import ClassVar

from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods.shared_alpha import SharedAlpha
from metadnas_ext.report.result import Kept
from metadnas_ext.search import GenotypeSampler
from metadnas_ext.seeding import generator
from metadnas_ext.space import Architecture


class RandomArchitecture(SharedAlpha):
    """Meta-DNAS's rounds; then an architecture drawn uniformly from the client's budget.

    All else is as for the shared α. After Li and Talwalkar, "Random search and reproducibility for
    NAS" (UAI 2019).
    """

    name = "random"
    title = "Random + fine-tuning"
    kept: ClassVar[Kept] = "fixed"

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self._samplers: dict[tuple[int, float], GenotypeSampler] = {}  # by device and budget

    def architecture(self, client: int) -> Architecture:
        budget = float(self.federation.budgets[client])
        kind = self.federation.device_of[client], budget
        if kind not in self._samplers:
            self._samplers[kind] = GenotypeSampler(self.federation.costs_of(client), budget)
        random = generator(self.config.run.seed, "random architecture", client)
        return self._samplers[kind].draw(random)
