"""The step on α: first-order differentiable architecture search under a compute budget."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from metadnas_ext.config import ClientConfig
from metadnas_ext.nn import NetworkPlan
from metadnas_ext.nn.functional import cross_entropy
from metadnas_ext.search import objective
from metadnas_ext.search.cohort import Batch, Cohort
from metadnas_ext.search.optimizers import RowAdam
from metadnas_ext.search.training import check_finite, rows_of
from metadnas_ext.search.trajectory import Trajectory
from metadnas_ext.space import CostTable


class Architect:
    """Adam on each client's α, on its validation batches (DARTS, first order).

    Loss of client i: CE(w, α) + λ_i φ(c(α)/B_i - 1) + γ KL(softmax α, softmax α_server)
    + β mean logsumexp α.

    Args:
        budgets: (G) float64, in the unit of `costs`, in the order of the cohort.
        server: α of the server (2, E, O), or None: no pull towards it.
        final_temperature: of the mixing weights at the end of training; falls geometrically from 1.
        trajectory: records the steps on α.
    """

    def __init__(
        self,
        plan: NetworkPlan,
        cohort: Cohort,
        config: ClientConfig,
        costs: CostTable,
        budgets: Tensor,
        server: Tensor | None,
        where: str,
        final_temperature: float = 1.0,
        trajectory: Trajectory | None = None,
    ) -> None:
        if cohort.alpha is None:
            raise ValueError("the cohort has no alpha to search over")
        self._plan = plan
        self._config = config
        self._costs = costs
        self._budgets = budgets
        self._server = server
        self._where = where
        self._final_temperature = final_temperature
        self._trajectory = trajectory
        self._multiplier = torch.full_like(budgets, config.penalty)
        self._optimizer = RowAdam(
            cohort.alpha,
            config.alpha_lr,
            betas=(config.alpha_beta1, 0.999),
            weight_decay=config.alpha_weight_decay,
        )

    def __call__(self, cohort: Cohort, batch: Batch, progress: Tensor) -> None:
        active = slice(0, len(progress))
        assert cohort.alpha is not None
        alpha = cohort.alpha[active].detach().requires_grad_()
        temperature = self.temperature(progress)
        multiplier = self._multiplier[active].clone()  # the backward pass needs it unchanged
        losses = self._losses(
            batch, temperature, multiplier, active, cohort.theta[active], alpha, self._server
        )
        check_finite(losses, cohort, self._where)
        (grad,) = torch.autograd.grad(losses.sum(), alpha)
        if self._config.penalty_kind == "dual":
            self._multiplier[active] = self._ascended(multiplier, alpha.detach(), temperature)
        if self._trajectory is not None:
            own = self._trajectory.clients
            seen = (batch.of(own), rows_of(temperature, own), multiplier[own], own)
            again = partial(self._losses, *seen)
            self._trajectory.record("alpha", self._optimizer, grad, again)
        self._optimizer.step(grad, len(progress))
        check_finite(cohort.alpha[active].flatten(1).abs().amax(1), cohort, self._where, "alpha")

    def temperature(self, progress: Tensor) -> Tensor | None:
        if self._final_temperature == 1.0:
            return None
        return self._final_temperature**progress

    def _losses(
        self,
        batch: Batch,
        temperature: Tensor | None,
        multiplier: Tensor,
        clients: slice,
        theta: Tensor,
        alpha: Tensor,
        server: Tensor | None,
    ) -> Tensor:
        """Losses (k) of the clients of some rows; `server`: (2, E, O), or one for each of them."""
        weights = objective.mixing_weights(alpha, temperature)
        out = self._plan(theta, weights, batch.x.to(theta.dtype), counts=batch.counts)
        losses = cross_entropy(out.logits, batch.labels, batch.counts)
        config = self._config
        _, excess = objective.cost_ratio(weights, self._costs, self._budgets[clients])
        total = objective.penalty(excess, config.penalty_kind, multiplier).to(alpha.dtype)
        if self._server is not None and server is not None and config.kl > 0:
            total = total + config.kl * objective.kl_to_server(alpha, server)
        if config.beta_decay > 0:
            total = total + config.beta_decay * objective.beta_decay(alpha)
        return losses + total

    def _ascended(self, multiplier: Tensor, alpha: Tensor, temperature: Tensor | None) -> Tensor:
        weights = objective.mixing_weights(alpha, temperature)
        _, excess = objective.cost_ratio(weights, self._costs, self._budgets[: len(alpha)])
        return objective.dual_ascent(multiplier, excess, self._config.dual_rate)
