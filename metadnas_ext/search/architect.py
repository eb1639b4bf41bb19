"""The step on α: differentiable architecture search, of two levels or of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from metadnas_ext.config import ClientConfig
from metadnas_ext.nn import NetworkPlan
from metadnas_ext.nn.functional import cross_entropy
from metadnas_ext.search.cohort import Batch, Cohort
from metadnas_ext.search.finite import FiniteCheck
from metadnas_ext.search.objective import Objective
from metadnas_ext.search.optimizers import RowAdam, RowOptimizer, per_client, row_norms
from metadnas_ext.search.relaxations import Mixing, Relaxation
from metadnas_ext.search.steps import Pass, StepBatches, weight_pass
from metadnas_ext.search.trajectory import Losses, Trajectory

TINY = torch.finfo(torch.float32).tiny


class Architect(ABC):
    """Adam on each client's α, on the loss CE(w, α) + the terms of `objective`.

    Args:
        objective: the terms beside the cross-entropy, for the clients of this cohort in its order.
        where: names the phase in the DivergenceError of a loss or an α that is not finite.
        warmup: local epochs of this search in which only w moves.
        trajectory: records the steps on α, of first order only: others are no gradients.
    """

    def __init__(
        self,
        plan: NetworkPlan,
        cohort: Cohort,
        config: ClientConfig,
        objective: Objective,
        relaxation: Relaxation,
        where: str,
        warmup: int = 0,
        trajectory: Trajectory | None = None,
    ) -> None:
        if cohort.alpha is None:
            raise ValueError("the cohort has no alpha to search over")
        self._plan = plan
        self._objective = objective
        self._relaxation = relaxation
        self._check = FiniteCheck(cohort, where)
        self._warmup = warmup
        self._trajectory = trajectory
        self._optimizer = RowAdam(
            cohort.alpha,
            config.alpha_lr,
            betas=(config.alpha_beta1, 0.999),
            weight_decay=config.alpha_weight_decay,
        )

    def __call__(
        self,
        cohort: Cohort,
        batches: StepBatches,
        step: int,
        train: Batch,
        optimizer: RowOptimizer,
    ) -> Pass:
        """A step up to the gradient of w; see `LocalStep`."""
        self.before(cohort, batches, step, train, optimizer)
        return self.weight_pass(cohort, batches, step, train)

    def kind(self, batches: StepBatches, step: int) -> tuple[int, ...]:
        """Clients that train, and those of them who do not search; see `LocalStep`."""
        return batches.active(step), self._searching(batches, step).start

    def validating(self, batches: StepBatches, step: int) -> slice | None:
        """The clients that search on validation data, if there are any; see `LocalStep`."""
        rows = self._searching(batches, step)
        return None if rows.start == rows.stop else rows

    def finish(self) -> None:
        """Behind the last step; see `LocalStep`."""
        self._check.finish()

    @abstractmethod
    def before(
        self,
        cohort: Cohort,
        batches: StepBatches,
        step: int,
        train: Batch,
        optimizer: RowOptimizer,
    ) -> None:
        """Before w takes step `step` on `train` with `optimizer`: may move α."""

    def weight_pass(self, cohort: Cohort, batches: StepBatches, step: int, train: Batch) -> Pass:
        """The pass on which w then moves."""
        rows = slice(0, batches.active(step))
        assert cohort.alpha is not None
        mixing = self._mix(cohort.alpha[rows], batches, step, rows, "train")
        return weight_pass(self._plan, cohort.theta[rows], mixing.weights, train)

    def weight_losses(
        self, batches: StepBatches, step: int, train: Batch, clients: slice
    ) -> Losses:
        """The losses of that pass again, of some of its clients."""
        batch = train.rows(clients).copy()

        def losses(theta: Tensor, alpha: Tensor, server: Tensor) -> Tensor:
            mixing = self._mix(alpha, batches, step, clients, "train")
            return self._entropies(theta, mixing, batch)

        return losses

    def _searching(self, batches: StepBatches, step: int) -> slice:
        """Rows that train and are past the warm-up, which clients with short epochs leave first."""
        active = batches.active(step)
        return slice(min(batches.within(step, self._warmup), active), active)

    def _mix(
        self, alpha: Tensor, batches: StepBatches, step: int, rows: slice, part: str
    ) -> Mixing:
        """Mixing weights of a step for batches of `part`, which draws for itself."""
        generators = partial(batches.generators, step, f"relaxation/{part}", rows)
        return self._relaxation.sample(alpha, batches.progress(step)[rows], generators)

    def _losses(
        self, theta: Tensor, alpha: Tensor, mixing: Mixing, batch: Batch, rows: slice
    ) -> Tensor:
        """The whole loss of each client, (k)."""
        return self._entropies(theta, mixing, batch) + self._objective(alpha, mixing.chances, rows)

    def _entropies(self, theta: Tensor, mixing: Mixing, batch: Batch) -> Tensor:
        out = self._plan(theta, mixing.weights, batch.x.to(theta.dtype), counts=batch.counts)
        return cross_entropy(out.logits, batch.labels, batch.counts)

    def _move(
        self, cohort: Cohort, rows: slice, losses: Tensor, grad: Tensor, mixing: Mixing
    ) -> None:
        """One step of Adam on the α of `rows`."""
        assert cohort.alpha is not None
        self._check(losses, first=rows.start)
        self._objective.advance(mixing.chances, rows)
        self._optimizer.step(grad, rows.stop, rows.start)
        self._check(cohort.alpha[rows], "alpha", rows.start)


class FirstOrder(Architect):
    """∇_α L_val(w, α), then w moves on a training batch (Liu et al., "DARTS", ICLR 2019, ξ = 0)."""

    def before(
        self,
        cohort: Cohort,
        batches: StepBatches,
        step: int,
        train: Batch,
        optimizer: RowOptimizer,
    ) -> None:
        rows = self.validating(batches, step)
        if rows is None:
            return
        assert cohort.alpha is not None
        alpha = cohort.alpha[rows].detach().requires_grad_()
        mixing = self._mix(alpha, batches, step, rows, "val")
        val = batches.val(rows.stop, rows.start)
        losses = self._losses(cohort.theta[rows], alpha, mixing, val, rows)
        (grad,) = torch.autograd.grad(losses.sum(), alpha)
        if self._trajectory is not None:
            again = partial(self._losses_again, batches, step, val, rows)
            self._trajectory.record("alpha", self._optimizer, grad, rows, again)
        self._move(cohort, rows, losses, grad, mixing)

    def _losses_again(
        self, batches: StepBatches, step: int, val: Batch, rows: slice, clients: slice
    ) -> Losses:
        """The losses of this step on the α of `rows`, of those of them that are in `clients`."""
        batch = val.rows(slice(clients.start - rows.start, clients.stop - rows.start)).copy()
        objective = self._objective.kept(clients)

        def losses(theta: Tensor, alpha: Tensor, server: Tensor) -> Tensor:
            mixing = self._mix(alpha, batches, step, clients, "val")
            terms = objective.towards(server)(alpha, mixing.chances, slice(None))
            return self._entropies(theta, mixing, batch) + terms

        return losses


class Unrolled(Architect):
    """∇_α L_val(w'(α), α) through one virtual step w'(α) = w - ξ ∇_w L_train(w, α) of w.

    Liu et al., "DARTS", equations 7 and 8: with v = ∇_w' L_val(w', α), the gradient is
    ∇_α L_val - ξ [∇_α L_train(w + εv) - ∇_α L_train(w - εv)] / 2ε, ε = 0.01 / |v| of each client.
    The virtual step, on the batch that w moves on next, has w's rate, momentum and weight decay as
    in DARTS (see `RowOptimizer.unrolled`). Three more passes a step than first order.

    Where a ReLU has its kink between w - εv and w + εv, the difference holds the jump of the
    gradient there, which automatic differentiation would leave out.
    """

    step_length: ClassVar[float] = 0.01  # |εv|

    def before(
        self,
        cohort: Cohort,
        batches: StepBatches,
        step: int,
        train: Batch,
        optimizer: RowOptimizer,
    ) -> None:
        rows = self.validating(batches, step)
        if rows is None:
            return
        assert cohort.alpha is not None
        theta, train = cohort.theta[rows], train.rows(rows)
        fixed = self._mix(cohort.alpha[rows], batches, step, rows, "train")
        ahead, rates = optimizer.unrolled(
            weight_pass(self._plan, theta, fixed.weights, train).grad, rows
        )
        ahead.requires_grad_()
        alpha = cohort.alpha[rows].detach().requires_grad_()
        mixing = self._mix(alpha, batches, step, rows, "val")
        val = batches.val(rows.stop, rows.start)
        losses = self._losses(ahead, alpha, mixing, val, rows)
        grad, vector = torch.autograd.grad(losses.sum(), (alpha, ahead))

        def slope(theta: Tensor) -> Tensor:
            """∇_α L_train(theta, α), (k, types, E, O)."""
            mixing = self._mix(alpha, batches, step, rows, "train")
            entropies = self._entropies(theta, mixing, train)
            return torch.autograd.grad(entropies.sum(), alpha)[0]

        epsilon = (self.step_length / row_norms(vector, TINY)).to(theta.dtype)  # (k)
        shift = epsilon[:, None] * vector
        mixed = (slope(theta + shift) - slope(theta - shift)) * per_client(0.5 / epsilon, grad)
        self._move(cohort, rows, losses, grad - per_client(rates, grad) * mixed, mixing)


class SingleLevel(Architect):
    """α and w move on one training batch, by one forward and backward pass; no validation data."""

    def before(
        self,
        cohort: Cohort,
        batches: StepBatches,
        step: int,
        train: Batch,
        optimizer: RowOptimizer,
    ) -> None:
        """Nothing: α moves in the same pass as w."""

    def validating(self, batches: StepBatches, step: int) -> slice | None:
        return None

    def weight_pass(self, cohort: Cohort, batches: StepBatches, step: int, train: Batch) -> Pass:
        rows, everyone = self._searching(batches, step), slice(0, batches.active(step))
        if rows.start == rows.stop:
            return super().weight_pass(cohort, batches, step, train)
        assert cohort.alpha is not None
        theta = cohort.theta[everyone].detach().requires_grad_()
        alpha = cohort.alpha[everyone].detach().requires_grad_()
        mixing = self._mix(alpha, batches, step, everyone, "train")
        searching = mixing._replace(chances=tuple(chances[rows] for chances in mixing.chances))
        out = self._plan(theta, mixing.weights, train.x, counts=train.counts)
        entropies = cross_entropy(out.logits, train.labels, train.counts)
        terms = self._objective(alpha[rows], searching.chances, rows)
        grad, alpha_grad = torch.autograd.grad(entropies.sum() + terms.sum(), (theta, alpha))
        losses = entropies[rows] + terms
        self._move(cohort, rows, losses, alpha_grad[rows], searching)
        return Pass(entropies.detach(), out.stats, grad)


ARCHITECTS: dict[str, type[Architect]] = {
    "first": FirstOrder,
    "second": Unrolled,
    "single": SingleLevel,
}
"""By the name of `client.order`."""
