"""The step on α: first-order differentiable architecture search under a compute budget."""

from __future__ import annotations

import torch
from torch import Tensor

from metadnas_ext.config import ClientConfig
from metadnas_ext.data import ImageStore
from metadnas_ext.nn import NetworkPlan
from metadnas_ext.nn.functional import correct, cross_entropy
from metadnas_ext.search import objective
from metadnas_ext.search.cohort import Batch, Cohort, passes
from metadnas_ext.search.optimizers import RowAdam
from metadnas_ext.search.training import Evaluation, check_finite
from metadnas_ext.space import CostTable


class Architect:
    """Adam on each client's α, on its validation batches (DARTS, first order).

    Loss of client i: CE(w, α) + λ_i φ(c(α)/B_i - 1) + γ KL(softmax α, softmax α_server)
    + β mean logsumexp α.

    Args:
        budgets: (G) float64, in the unit of `costs`, in the order of the cohort.
        server: α of the server (2, E, O), or None: no pull towards it.
        final_temperature: of the mixing weights at the end of training; falls geometrically from 1.
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
        self._multiplier = torch.full_like(budgets, config.penalty)
        self._optimizer = RowAdam(
            cohort.alpha,
            config.alpha_lr,
            betas=(config.alpha_beta1, 0.999),
            weight_decay=config.alpha_weight_decay,
        )

    def __call__(self, cohort: Cohort, batch: Batch, progress: Tensor) -> None:
        active = len(progress)
        assert cohort.alpha is not None
        alpha = cohort.alpha[:active].detach().requires_grad_()
        weights = objective.mixing_weights(alpha, self.temperature(progress))
        out = self._plan(cohort.theta[:active], weights, batch.x, counts=batch.counts)
        losses = cross_entropy(out.logits, batch.labels, batch.counts)
        losses = losses + self._regularisers(alpha, weights)
        check_finite(losses, cohort, self._where)
        (grad,) = torch.autograd.grad(losses.sum(), alpha)
        self._optimizer.step(grad, active)
        check_finite(cohort.alpha[:active].flatten(1).abs().amax(1), cohort, self._where, "alpha")

    def temperature(self, progress: Tensor) -> Tensor | None:
        if self._final_temperature == 1.0:
            return None
        return self._final_temperature**progress

    def _regularisers(self, alpha: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        config, active = self._config, alpha.shape[0]
        _, excess = objective.cost_ratio(weights, self._costs, self._budgets[:active])
        multiplier = self._multiplier[:active].clone()  # the backward pass needs it unchanged
        total = objective.penalty(excess, config.penalty_kind, multiplier).to(alpha.dtype)
        if config.penalty_kind == "dual":
            self._multiplier[:active] = objective.dual_ascent(multiplier, excess, config.dual_rate)
        if self._server is not None and config.kl > 0:
            total = total + config.kl * objective.kl_to_server(alpha, self._server)
        if config.beta_decay > 0:
            total = total + config.beta_decay * objective.beta_decay(alpha)
        return total


def meta_gradient(
    plan: NetworkPlan,
    cohort: Cohort,
    config: ClientConfig,
    costs: CostTable,
    budgets: Tensor,
    store: ImageStore,
    where: str,
) -> tuple[Tensor, Evaluation]:
    """First-order MAML's gradient: of the validation loss at the adapted point, with respect to α.

    Finn et al., "MAML" (ICML 2017), first-order variant. The loss is the client's own objective,
    cross-entropy on all its validation data plus its complexity penalty, without the terms that
    only guide the local search. Returns the gradient (G, 2, E, O) and the validation figures.
    """
    assert cohort.alpha is not None
    grad = torch.zeros_like(cohort.alpha)
    size = torch.tensor([len(s.val) for s in cohort.splits], dtype=torch.float64)
    loss, hits = torch.zeros_like(size), torch.zeros_like(size)
    for batch in passes(store, cohort.splits, "val", config.batch_size, cohort.theta.dtype):
        alpha = cohort.alpha.detach().requires_grad_()
        weights = objective.mixing_weights(alpha)
        # Running statistics: a last, small batch would not have good ones of its own.
        out = plan(cohort.theta, weights, batch.x, running=cohort.running, counts=batch.counts)
        losses = cross_entropy(out.logits, batch.labels, batch.sizes)
        check_finite(losses, cohort, where)
        share = batch.sizes / size  # (G)
        (step,) = torch.autograd.grad((losses * share.to(losses.dtype)).sum(), alpha)
        grad += step
        loss += losses.detach() * batch.sizes
        hits += correct(out.logits, batch.labels, batch.sizes)
    alpha = cohort.alpha.detach().requires_grad_()
    _, excess = objective.cost_ratio(objective.mixing_weights(alpha), costs, budgets)
    kind = "linear" if config.penalty_kind == "dual" else config.penalty_kind
    (step,) = torch.autograd.grad(objective.penalty(excess, kind, config.penalty).sum(), alpha)
    return grad + step, Evaluation(loss / size, hits / size, size)
