"""The step on α: differentiable architecture search, of two levels or of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from metadnas_ext.config import ClientConfig
from metadnas_ext.data import ImageStore
from metadnas_ext.nn import NetworkPlan
from metadnas_ext.nn.functional import correct, cross_entropy
from metadnas_ext.search.cohort import Batch, Cohort, TrainBatches, passes
from metadnas_ext.search.objective import CostPenalty, Objective
from metadnas_ext.search.optimizers import RowAdam, RowOptimizer
from metadnas_ext.search.relaxations import SOFTMAX, Mixing, Relaxation
from metadnas_ext.search.training import Evaluation, Pass, check_finite, weight_pass
from metadnas_ext.space import CostTable


class Architect(ABC):
    """Adam on each client's α, on the loss CE(w, α) + the terms of `objective`.

    Args:
        objective: the terms beside the cross-entropy, for the clients of this cohort in its order.
        where: names the phase in the DivergenceError of a loss or an α that is not finite.
        warmup: local epochs of this search in which only w moves.
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
    ) -> None:
        if cohort.alpha is None:
            raise ValueError("the cohort has no alpha to search over")
        self._plan = plan
        self._objective = objective
        self._relaxation = relaxation
        self._where = where
        self._warmup = warmup
        self._optimizer = RowAdam(
            cohort.alpha,
            config.alpha_lr,
            betas=(config.alpha_beta1, 0.999),
            weight_decay=config.alpha_weight_decay,
        )

    @abstractmethod
    def before(
        self,
        cohort: Cohort,
        batches: TrainBatches,
        step: int,
        train: Batch,
        optimizer: RowOptimizer,
    ) -> None:
        """Before w takes step `step` on `train` with `optimizer`: may move α."""

    def weight_pass(self, cohort: Cohort, batches: TrainBatches, step: int, train: Batch) -> Pass:
        """The pass on which w then moves."""
        rows = slice(0, batches.active(step))
        assert cohort.alpha is not None
        mixing = self._mix(cohort.alpha[rows], batches, step, rows, "train")
        return weight_pass(self._plan, cohort.theta[rows], mixing.weights, train)

    def _searching(self, batches: TrainBatches, step: int) -> slice:
        """Rows that train and are past the warm-up, which clients with short epochs leave first."""
        active = batches.active(step)
        return slice(min(batches.within(step, self._warmup), active), active)

    def _mix(
        self, alpha: Tensor, batches: TrainBatches, step: int, rows: slice, part: str
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
        out = self._plan(theta, mixing.weights, batch.x, counts=batch.counts)
        return cross_entropy(out.logits, batch.labels, batch.counts)

    def _move(
        self, cohort: Cohort, rows: slice, losses: Tensor, grad: Tensor, mixing: Mixing
    ) -> None:
        """One step of Adam on the α of `rows`."""
        assert cohort.alpha is not None
        check_finite(losses, cohort, self._where, first=rows.start)
        self._objective.advance(mixing.chances, rows)
        self._optimizer.step(grad, rows.stop, rows.start)
        largest = cohort.alpha[rows].flatten(1).abs().amax(1)
        check_finite(largest, cohort, self._where, "alpha", rows.start)


class FirstOrder(Architect):
    """∇_α L_val(w, α), then w moves on a training batch (Liu et al., "DARTS", ICLR 2019, ξ = 0)."""

    def before(
        self,
        cohort: Cohort,
        batches: TrainBatches,
        step: int,
        train: Batch,
        optimizer: RowOptimizer,
    ) -> None:
        rows = self._searching(batches, step)
        if rows.start == rows.stop:
            return
        assert cohort.alpha is not None
        alpha = cohort.alpha[rows].detach().requires_grad_()
        mixing = self._mix(alpha, batches, step, rows, "val")
        val = batches.val(rows.stop, rows.start)
        losses = self._losses(cohort.theta[rows], alpha, mixing, val, rows)
        (grad,) = torch.autograd.grad(losses.sum(), alpha)
        self._move(cohort, rows, losses, grad, mixing)


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
        batches: TrainBatches,
        step: int,
        train: Batch,
        optimizer: RowOptimizer,
    ) -> None:
        rows = self._searching(batches, step)
        if rows.start == rows.stop:
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

        epsilon = (self.step_length / norms(vector)).to(theta.dtype)  # (k)
        shift = epsilon[:, None] * vector
        mixed = (slope(theta + shift) - slope(theta - shift)) * per_client(0.5 / epsilon, grad)
        self._move(cohort, rows, losses, grad - per_client(rates, grad) * mixed, mixing)


class SingleLevel(Architect):
    """α and w move on one training batch, by one forward and backward pass; no validation data."""

    def before(
        self,
        cohort: Cohort,
        batches: TrainBatches,
        step: int,
        train: Batch,
        optimizer: RowOptimizer,
    ) -> None:
        """Nothing: α moves in the same pass as w."""

    def weight_pass(self, cohort: Cohort, batches: TrainBatches, step: int, train: Batch) -> Pass:
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


def meta_gradient(
    plan: NetworkPlan,
    cohort: Cohort,
    config: ClientConfig,
    costs: CostTable,
    budgets: Tensor,
    store: ImageStore,
    where: str,
    relaxation: Relaxation = SOFTMAX,
) -> tuple[Tensor, Evaluation]:
    """First-order MAML's gradient: of the validation loss at the adapted point, with respect to α.

    Finn et al., "MAML" (ICML 2017), first-order variant. The loss is the client's own objective,
    cross-entropy on all its validation data plus its complexity penalty, without the terms that
    only guide the local search. Returns the gradient (G, types, E, O) and the validation figures.
    """
    assert cohort.alpha is not None
    size = config.batch_size
    grad, figures = validation_gradient(plan, cohort, cohort.alpha, relaxation, store, size, where)
    alpha = cohort.alpha.detach().requires_grad_()
    kind = "linear" if config.penalty_kind == "dual" else config.penalty_kind
    penalty = CostPenalty(costs, budgets, kind, config.penalty)
    terms = penalty(alpha, relaxation.mixture(alpha).chances, slice(None))
    (step,) = torch.autograd.grad(terms.sum(), alpha)
    return grad + step, figures


def validation_gradient(
    plan: NetworkPlan,
    cohort: Cohort,
    alpha: Tensor,
    relaxation: Relaxation,
    store: ImageStore,
    batch_size: int,
    where: str,
) -> tuple[Tensor, Evaluation]:
    """Gradient of the mean cross-entropy on all validation data, and figures.

    At alpha (G, types, E, O), with the cohort's w and running statistics: a last, small batch would
    not have good ones of its own.
    """
    grad = torch.zeros_like(alpha)
    size = torch.tensor([len(s.val) for s in cohort.splits], dtype=torch.float64)
    loss, hits = torch.zeros_like(size), torch.zeros_like(size)
    for batch in passes(store, cohort.splits, "val", batch_size, cohort.theta.dtype):
        leaf = alpha.detach().requires_grad_()
        weights = relaxation.mixture(leaf).weights
        out = plan(cohort.theta, weights, batch.x, running=cohort.running, counts=batch.counts)
        losses = cross_entropy(out.logits, batch.labels, batch.sizes)
        check_finite(losses, cohort, where)
        share = batch.sizes / size  # (G)
        (step,) = torch.autograd.grad((losses * share.to(losses.dtype)).sum(), leaf)
        grad += step
        loss += losses.detach() * batch.sizes
        hits += correct(out.logits, batch.labels, batch.sizes)
    return grad, Evaluation(loss / size, hits / size, size)


def norms(rows: Tensor) -> Tensor:
    """Norm of each client's row (G, ...), float64 (G); never 0.

    Client by client: torch adds up a single row in another order than several.
    """
    tiny = torch.finfo(torch.float32).tiny
    return torch.stack([row.double().norm() for row in rows]).clamp(min=tiny)


def per_client(values: Tensor, like: Tensor) -> Tensor:
    """(G) -> (G, 1, ..., 1) in the dimensions and type of `like` (G, ...)."""
    return values.to(like.dtype).view(-1, *(1,) * (like.dim() - 1))
