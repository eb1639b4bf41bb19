"""Per-FedAvg: federated averaging of a model that is good after one step of adaptation."""

from __future__ import annotations

import torch
from torch import Tensor

from metadnas_ext.methods.derived import local_batches, weight_gradient
from metadnas_ext.methods.fedavg import FedAvgFineTuned
from metadnas_ext.nn import NetworkPlan
from metadnas_ext.search.cohort import Batch, Cohort, TrainBatches
from metadnas_ext.search.finite import FiniteCheck, check_update
from metadnas_ext.search.training import Training, mean_losses

HESSIAN_STEP = 0.01  # of the finite difference, as a norm: DARTS' choice


class PerFedAvg(FedAvgFineTuned):
    """Fallah, Mokhtari and Ozdaglar (NeurIPS 2020), in the rounds; then fine-tuning as all have it.

    A client's local steps follow MAML's gradient of f_i(w - a ∇f_i(w)); see `meta_train`.
    """

    name = "per_fedavg"
    title = "Per-FedAvg"
    training_key = "per_fedavg"

    def _fit(self, cohort: Cohort, lr: float, where: str) -> Tensor:
        client, rivals = self.config.client, self.config.rivals
        return meta_train(
            self.plan,
            cohort,
            local_batches(self.federation, cohort, client.epochs, where),
            Training.of(client, lr),
            rivals.per_fedavg_lr,
            rivals.per_fedavg_kind == "hessian_free",
            where,
        )


def meta_train(
    plan: NetworkPlan,
    cohort: Cohort,
    batches: TrainBatches,
    how: Training,
    inner_lr: float,
    hessian_free: bool,
    where: str,
) -> Tensor:
    """Trains each client in place; its mean loss before the inner steps, (G) on the CPU.

    One step takes two of the client's batches D and D', so that an epoch is one pass over its data:

        g = ∇f(w - a ∇f(w; D); D')                      first order
        g - a ∇²f(w; D) g                               Hessian-free (Fallah et al., section 5)

    the product with the Hessian by a central difference of gradients, which evaluates D twice more.
    `how` then applies it to w. A last batch without a partner makes an ordinary step. Batch norms'
    running statistics follow the passes at w.
    """
    total_steps = [-(-steps // 2) for steps in batches.steps]
    optimizer = how.make(cohort.theta, total_steps)
    check = FiniteCheck(cohort, where)
    total = cohort.theta.new_zeros(len(cohort.splits), dtype=torch.float64)
    for at in range(0, len(batches), 2):
        first, second = batches.active(at), batches.active(at + 1)
        inner = batches.train(first)
        losses, grad, stats = weight_gradient(plan, cohort.theta[:first], inner, check)
        if second:
            start = cohort.theta[:second]
            adapted = start - inner_lr * grad[:second]
            _, outer, _ = weight_gradient(plan, adapted, batches.train(second), check)
            if hessian_free:
                own = inner.rows(slice(0, second))
                outer = outer - inner_lr * _hessian_product(plan, start, outer, own, check)
            grad[:second] = outer
        optimizer.step(grad, first)
        plan.update_running(cohort.running[:first], stats, inner.sizes)
        total[:first] += losses
    check.finish()
    check_update(cohort, where)
    return mean_losses(total, total_steps)


def _hessian_product(
    plan: NetworkPlan, theta: Tensor, vector: Tensor, batch: Batch, check: FiniteCheck
) -> Tensor:
    """∇²f(theta) vector of each client, (k, P)."""
    # Row by row: a sum along rows may be added up in another order in another cohort.
    norm = torch.stack([row.norm() for row in vector])[:, None]
    step = HESSIAN_STEP / norm.clamp(min=torch.finfo(norm.dtype).tiny)  # (k, 1)
    _, above, _ = weight_gradient(plan, theta + step * vector, batch, check)
    _, below, _ = weight_gradient(plan, theta - step * vector, batch, check)
    return (above - below) / (2 * step)
