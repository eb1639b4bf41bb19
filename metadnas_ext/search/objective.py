"""A client's loss on α beside the cross-entropy: a sum of terms, all with a leading client axis."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metadnas_ext.search.relaxations import Relaxation, Sigmoid, each
from metadnas_ext.space import CohortCosts, CostTable, expected_cost

if TYPE_CHECKING:
    from metadnas_ext.config import ClientConfig
    from metadnas_ext.nn.stages import Weights


class Term(ABC):
    """A term of the loss. `rows` are the clients of the cohort that the tensors are of."""

    @abstractmethod
    def __call__(self, alpha: Tensor, chances: Weights, rows: slice) -> Tensor:
        """alpha (k, types, E, O), chances of each cell type (k, E, O) -> (k) in alpha's type."""

    def advance(self, chances: Weights, rows: slice) -> None:  # noqa: B027 (most terms never do)
        """Told of every step on α: for terms that change over time."""

    def kept(self, rows: slice) -> Term:
        """The term as it is now, of just these clients, who are all it then knows."""
        return self

    def towards(self, server: Tensor) -> Term:
        """The same with another α of the server, (k, types, E, O)."""
        return self


class CostPenalty(Term):
    """λ φ(c(α) / B - 1): expected cost c against each client's budget B.

    φ(e) by `kind`: linear e (the paper's), hinge max(e, 0), squared_hinge max(e, 0)²,
    absolute |e|, which draws towards the budget from below too (Bender et al., "TuNAS", CVPR 2020),
    dual e with a λ of each client's own, λ <- max(0, λ + rate e) after every step.

    Args:
        costs: one table for all, or each client's own in the order of the cohort.
        budgets: (G) float64, in the unit of `costs`, in the order of the cohort; as these, on its
            device.
        strength: λ, at the start of dual ascent.
    """

    def __init__(
        self,
        costs: CostTable | CohortCosts,
        budgets: Tensor,
        kind: str,
        strength: float,
        rate: float = 0.0,
    ) -> None:
        self._costs, self._budgets, self._kind = costs, budgets, kind
        self._rate = rate if kind == "dual" else 0.0
        self.multiplier = torch.full_like(budgets, strength)  # λ, (G)

    def __call__(self, alpha: Tensor, chances: Weights, rows: slice) -> Tensor:
        excess = self._excess(chances, rows)
        if self._kind in ("hinge", "squared_hinge"):
            excess = excess.clamp(min=0)
        if self._kind == "squared_hinge":
            excess = excess.square()
        if self._kind == "absolute":
            excess = excess.abs()
        # A copy: the backward pass needs λ as it was.
        return (self.multiplier[rows].clone() * excess).to(alpha.dtype)

    @torch.no_grad()
    def advance(self, chances: Weights, rows: slice) -> None:
        if self._rate > 0:
            step = self._rate * self._excess(chances, rows)
            self.multiplier[rows] = (self.multiplier[rows] + step).clamp(min=0)

    def kept(self, rows: slice) -> CostPenalty:
        term = CostPenalty(self._costs_of(rows), self._budgets[rows], self._kind, 0.0, self._rate)
        term.multiplier = self.multiplier[rows].clone()
        return term

    def _excess(self, chances: Weights, rows: slice) -> Tensor:
        return expected_cost(self._costs_of(rows), *chances) / self._budgets[rows] - 1

    def _costs_of(self, rows: slice) -> CostTable | CohortCosts:
        return self._costs.rows(rows) if isinstance(self._costs, CohortCosts) else self._costs


class KLToServer(Term):
    """weight * mean over edges of KL(chances under α, chances under the server's α).

    The server's is (types, E, O).
    """

    def __init__(self, weight: float, server: Tensor, relaxation: Relaxation) -> None:
        self._weight, self._relaxation = weight, relaxation
        self._server = relaxation.log_chances(server)

    def __call__(self, alpha: Tensor, chances: Weights, rows: slice) -> Tensor:
        log_p = self._relaxation.log_chances(alpha)
        return self._weight * (log_p.exp() * (log_p - self._server)).sum(-1).mean((1, 2))

    def towards(self, server: Tensor) -> KLToServer:
        return KLToServer(self._weight, server, self._relaxation)


class BetaDecay(Term):
    """weight * mean over edges of logsumexp α (Ye et al., "β-DARTS", CVPR 2022)."""

    def __init__(self, weight: float) -> None:
        self._weight = weight

    def __call__(self, alpha: Tensor, chances: Weights, rows: slice) -> Tensor:
        return self._weight * torch.logsumexp(alpha, -1).mean((1, 2))


class ZeroOne(Term):
    """-weight * mean of (σ(α) - 1/2)²: drives sigmoids to 0 or 1 (Chu et al., "Fair DARTS")."""

    def __init__(self, weight: float) -> None:
        self._weight = weight

    def __call__(self, alpha: Tensor, chances: Weights, rows: slice) -> Tensor:
        weights = each(torch.sigmoid, alpha)
        return -self._weight * (weights - 0.5).square().mean((1, 2, 3))


class Objective:
    """The sum of some terms."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = tuple(terms)

    @classmethod
    def of(
        cls,
        config: ClientConfig,
        relaxation: Relaxation,
        costs: CostTable | CohortCosts,
        budgets: Tensor,
        server: Tensor | None,
    ) -> Objective:
        """The terms that `config` switches on; a weight of 0 switches one off.

        server: α (types, E, O) that the KL term pulls towards, or None. Dual ascent from 0 is on.
        """
        terms: list[Term] = []
        dual = config.penalty_kind == "dual" and config.dual_rate > 0
        if config.penalty > 0 or dual:
            kind, rate = config.penalty_kind, config.dual_rate
            terms.append(CostPenalty(costs, budgets, kind, config.penalty, rate))
        if server is not None and config.kl > 0:
            terms.append(KLToServer(config.kl, server, relaxation))
        if config.beta_decay > 0:
            terms.append(BetaDecay(config.beta_decay))
        if isinstance(relaxation, Sigmoid) and config.zero_one > 0:
            terms.append(ZeroOne(config.zero_one))
        return cls(terms)

    def __call__(self, alpha: Tensor, chances: Weights, rows: slice) -> Tensor:
        """(k), as a term's."""
        total = alpha.new_zeros(len(alpha))
        for term in self.terms:
            total = total + term(alpha, chances, rows)
        return total

    def advance(self, chances: Weights, rows: slice) -> None:
        for term in self.terms:
            term.advance(chances, rows)

    def kept(self, rows: slice) -> Objective:
        """As a term's."""
        return Objective([term.kept(rows) for term in self.terms])

    def towards(self, server: Tensor) -> Objective:
        """As a term's."""
        return Objective([term.towards(server) for term in self.terms])


def entropy(log_p: Tensor) -> Tensor:
    """Mean entropy over edges, in nats, of log chances (G, types, E, O) -> (G)."""
    return -(log_p.exp() * log_p).sum(-1).mean((1, 2))
