"""What a meta-learner is to the server: from clients' local searches to meta-gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from metadnas_ext.config import ClientConfig
from metadnas_ext.data import ImageStore
from metadnas_ext.nn import NetworkPlan
from metadnas_ext.search.cohort import Cohort
from metadnas_ext.search.finite import check_finite
from metadnas_ext.search.relaxations import SOFTMAX, Relaxation
from metadnas_ext.search.training import Evaluation
from metadnas_ext.search.trajectory import Trajectory
from metadnas_ext.space import CohortCosts, CostTable

LEARNED = {"alpha": ("alpha",), "w": ("theta",), "both": ("theta", "alpha")}
"""What is meta-learned, by `server.meta_on`; the rest is averaged."""


class MetaGradient(NamedTuple):
    """theta (G, P) and alpha (G, types, E, O); None: not meta-learned."""

    theta: Tensor | None
    alpha: Tensor | None


@dataclass(frozen=True)
class Adapted:
    """A cohort after its local search, and what its loss is made of.

    Args:
        theta, alpha: the server's state (P), (types, E, O), which every client started from, but
            for what has stayed on it.
        costs: one table for all, or each client's own in the order of the cohort.
        budgets: (G) float64, in the unit of `costs`, in the order of the cohort; as these, on its
            device.
        where: names the phase in errors.
        relaxation: of the search.
        trajectory: of the search, for a learner that asked for one.
    """

    plan: NetworkPlan
    cohort: Cohort
    theta: Tensor
    alpha: Tensor
    config: ClientConfig
    costs: CostTable | CohortCosts
    budgets: Tensor
    store: ImageStore
    where: str
    relaxation: Relaxation = SOFTMAX
    trajectory: Trajectory | None = None


class MetaLearner(ABC):
    """One of the ways to a meta-gradient.

    Args:
        on: what is meta-learned, a value of `server.meta_on`.
        window: of a client's search, the last steps that are differentiated, by a learner that
            differentiates it; 0: all.
    """

    name: ClassVar[str]

    def __init__(self, on: str, window: int = 0) -> None:
        self.learned = LEARNED[on]
        self._window = window

    def trajectory(self) -> Trajectory | None:
        """A recorder for the local search of one cohort, if the learner needs it."""
        return None

    @abstractmethod
    def __call__(self, adapted: Adapted) -> tuple[MetaGradient, Evaluation]:
        """The clients' meta-gradients, and their validation figures at the adapted point.

        Raises DivergenceError if a loss or a gradient is not finite.
        """

    def _own(self, adapted: Adapted, theta: Tensor | None, alpha: Tensor | None) -> MetaGradient:
        """Only what is meta-learned; DivergenceError if it is not finite."""
        parts = {"theta": theta, "alpha": alpha}
        own = MetaGradient(**{n: t if n in self.learned else None for n, t in parts.items()})
        for part in own:
            if part is not None:
                check_finite(part, adapted.cohort, adapted.where, "meta-gradient")
        return own
