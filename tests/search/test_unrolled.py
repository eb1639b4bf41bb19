"""The unrolled step on alpha against exact second derivatives and against plain differences.

In double precision on four clients, in the middle of a search. With the published step length on a
network without kinks; with a much smaller one on one with ReLUs, of which none then switches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from metadnas_ext.config import Config
from metadnas_ext.nn import NetworkPlan, supernet_plan
from metadnas_ext.nn.functional import cross_entropy
from metadnas_ext.nn.stages import Weights
from metadnas_ext.search.architect import Unrolled
from metadnas_ext.search.cohort import Batch, Cohort, TrainBatches
from metadnas_ext.search.objective import Objective
from metadnas_ext.search.optimizers import RowOptimizer
from metadnas_ext.search.relaxations import SOFTMAX, Gumbel, Relaxation
from metadnas_ext.search.steps import weight_pass
from metadnas_ext.search.training import Training
from metadnas_ext.space import cost_table

from . import _smooth
from ._clients import SHAPE, budgets_of, client_config, fresh_cohort, random_rows, train_batches

KINDS = {
    "sgd": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "adam": {"optimizer": "adam", "lr": 0.05, "weight_decay": 0.01},
}
STEP = 2  # of the shortest client's 3


class Recorded(Unrolled):
    """Keeps the gradient instead of taking the step."""

    def _move(self, cohort, rows, losses, grad, mixing) -> None:  # type: ignore[no-untyped-def]
        self.grad = grad


class Fine(Recorded):
    step_length = 1e-6


@dataclass
class Problem:
    """A step on alpha, its gradient `grad`, and the same in plain formulas."""

    plan: NetworkPlan
    cohort: Cohort
    config: Config
    objective: Objective
    optimizer: RowOptimizer
    rates: Tensor
    velocity: Tensor
    train: Batch
    val: Batch
    weights: Callable[[Tensor, str], Weights]
    grad: Tensor

    @property
    def alpha(self) -> Tensor:
        assert self.cohort.alpha is not None
        return self.cohort.alpha

    def loss_ahead(self, alpha: Tensor, create_graph: bool = False) -> Tensor:
        """L_val(w'(alpha), alpha), (G)."""
        return self.losses(self.ahead(alpha, create_graph), alpha)

    def ahead(self, alpha: Tensor, create_graph: bool = False) -> Tensor:
        """w'(alpha), (G, P)."""
        theta = self.cohort.theta.clone().requires_grad_()
        entropies = self.entropies(theta, self.weights(alpha, "train"), self.train)
        (grad,) = torch.autograd.grad(entropies.sum(), theta, create_graph=create_graph)
        settings = self.config.client
        step = grad + settings.weight_decay * self.cohort.theta
        if settings.optimizer == "sgd":
            step = step + settings.momentum * self.velocity
        return self.cohort.theta - self.rates[:, None] * step

    def losses(self, theta: Tensor, alpha: Tensor) -> Tensor:
        terms = self.objective(alpha, SOFTMAX.mixture(alpha).chances, slice(0, len(alpha)))
        return self.entropies(theta, self.weights(alpha, "val"), self.val) + terms

    def entropies(self, theta: Tensor, weights: Weights, batch: Batch) -> Tensor:
        out = self.plan(theta, weights, batch.x, counts=batch.counts)
        return cross_entropy(out.logits, batch.labels, batch.counts)


@cache
def problem(kind: str, smooth: bool, relaxation: Relaxation = SOFTMAX) -> Problem:
    """Two steps of w into training, so that there is momentum and SGD's rate has fallen."""
    config = client_config(**KINDS[kind], clip=0)
    if smooth:
        shape, plan, cohort = _smooth.SMOOTH, _smooth.PLAN, _smooth.smooth_cohort(range(4))
    else:
        shape, plan, cohort = SHAPE, supernet_plan(SHAPE), fresh_cohort(range(4))
        assert cohort.alpha is not None
        cohort.alpha += random_rows(4, cohort.alpha[0].numel(), 5).view_as(cohort.alpha)
    assert cohort.alpha is not None
    batches = train_batches(cohort, 3)
    optimizer = Training.of(config.client).make(cohort.theta, batches.steps)
    velocity = torch.zeros_like(cohort.theta)
    for _ in range(STEP):
        batch = batches.train(4)
        grad = weight_pass(plan, cohort.theta, SOFTMAX.mixture(cohort.alpha).weights, batch).grad
        velocity = 0.9 * velocity + grad + 0.01 * cohort.theta
        optimizer.step(grad, 4)
    cosine = (1 + torch.cos(torch.pi * STEP / torch.tensor(batches.steps).double())) / 2
    rates = 0.1 * cosine if kind == "sgd" else torch.full((4,), 0.05).double()
    server = random_rows(1, cohort.alpha[0].numel(), 9).view_as(cohort.alpha[0])
    costs = cost_table(shape)
    objective = Objective.of(config.client, SOFTMAX, costs, budgets_of(cohort), server)
    architect = (Recorded if smooth else Fine)(
        plan, cohort, config.client, objective, relaxation, "here"
    )
    seen = Seen(batches)
    train = batches.train(4)
    architect.before(cohort, seen, STEP, train, optimizer)  # type: ignore[arg-type]

    def weights(alpha: Tensor, part: str) -> Weights:
        """Of batches of this part, with the noise of this step."""
        rngs = partial(batches.generators, STEP, f"relaxation/{part}", slice(0, 4))
        return relaxation.sample(alpha, batches.progress(STEP), rngs).weights

    made = (plan, cohort, config, objective, optimizer, rates, velocity, train, seen.batch)
    return Problem(*made, weights, architect.grad)


class Seen:
    """Batches that remember the last one for validation."""

    def __init__(self, batches: TrainBatches) -> None:
        self._batches = batches

    def val(self, active: int, first: int = 0) -> Batch:
        self.batch = self._batches.val(active, first)
        return self.batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)


def relative(actual: Tensor, expected: Tensor) -> list[float]:
    """Error of each client's tensor, by norms."""
    return [float((a - e).norm() / e.norm()) for a, e in zip(actual, expected, strict=True)]


@pytest.mark.parametrize(
    ("kind", "smooth", "relaxation"),
    [
        ("sgd", True, SOFTMAX),
        ("adam", True, SOFTMAX),
        ("sgd", True, Gumbel()),
        ("sgd", False, SOFTMAX),
        ("adam", False, SOFTMAX),
    ],
)
def test_gradient_is_that_of_autograd_through_the_virtual_step(
    kind: str, smooth: bool, relaxation: Relaxation
) -> None:
    """The whole gradient, and its second term alone; with noise, that of the step on w to come."""
    made = problem(kind, smooth, relaxation)
    alpha = made.alpha.clone().requires_grad_()
    (exact,) = torch.autograd.grad(made.loss_ahead(alpha, create_graph=True).sum(), alpha)
    (first,) = torch.autograd.grad(made.losses(made.ahead(alpha.detach()), alpha).sum(), alpha)
    assert max(relative(made.grad, exact)) < (1e-3 if smooth else 1e-6)
    assert max(relative(made.grad - first, exact - first)) < (1e-2 if smooth else 1e-5)
    # The term is there: without it every client would be off by far more.
    assert min(relative(first, exact)) > 5e-3
    assert max(relative(first, exact)) > 0.1


@pytest.mark.parametrize("kind", list(KINDS))
def test_gradient_matches_differences_of_the_loss_after_the_virtual_step(kind: str) -> None:
    """No derivative of a derivative: each client's loss at w'(alpha), along each axis of alpha."""
    made = problem(kind, True)
    step, normal = 1e-4, made.alpha[0, 0]
    for index in range(normal.numel()):
        moved = torch.zeros(2, normal.numel(), dtype=torch.float64)
        moved[0, index] = step
        shift = moved.view_as(made.alpha[0])
        up, down = made.loss_ahead(made.alpha + shift), made.loss_ahead(made.alpha - shift)
        slope = made.grad[:, 0].flatten(1)[:, index]
        expected = ((up - down) / (2 * step)).tolist()
        assert slope.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_virtual_step_is_the_optimisers_next_one(kind: str) -> None:
    """SGD's; Adam stands for plain gradient descent at its rate. And nothing has moved."""
    made = problem.__wrapped__(kind, True)
    weights = SOFTMAX.mixture(made.alpha).weights
    grad = weight_pass(made.plan, made.cohort.theta, weights, made.train).grad
    before = made.cohort.theta.clone()
    ahead, rates = made.optimizer.unrolled(grad[1:3], slice(1, 3))
    torch.testing.assert_close(ahead, made.ahead(made.alpha)[1:3])
    torch.testing.assert_close(rates, made.rates[1:3])
    assert torch.equal(made.cohort.theta, before)
    if kind == "sgd":
        made.optimizer.step(grad, 4)
        torch.testing.assert_close(ahead, made.cohort.theta[1:3])
