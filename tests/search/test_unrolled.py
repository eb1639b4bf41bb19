"""The unrolled step on alpha against exact second derivatives and against plain differences.

In double precision on four clients. The network has kinks (ReLU; no max pools here): the central
differences inside the step must not straddle many of them, which holds for these seeds.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from metadnas_ext.config import Config
from metadnas_ext.nn import supernet_plan
from metadnas_ext.nn.functional import cross_entropy
from metadnas_ext.search.architect import Unrolled
from metadnas_ext.search.cohort import Batch, Cohort
from metadnas_ext.search.objective import Objective
from metadnas_ext.search.optimizers import RowOptimizer
from metadnas_ext.search.relaxations import SOFTMAX
from metadnas_ext.search.training import Training, weight_pass

from ._clients import (
    COSTS,
    SHAPE,
    budgets_of,
    client_config,
    fresh_cohort,
    random_rows,
    start,
    train_batches,
)

PLAN = supernet_plan(SHAPE)
CONFIGS = {
    "sgd": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "adam": {"optimizer": "adam", "lr": 0.05, "weight_decay": 0.01},
}


class Recorded(Unrolled):
    """Keeps the gradient instead of taking the step."""

    def _move(self, cohort, rows, losses, grad, mixing) -> None:  # type: ignore[no-untyped-def]
        self.grad = grad


class Problem(NamedTuple):
    """One step on alpha in the middle of a search; `ahead` as plain formulas."""

    cohort: Cohort
    config: Config
    objective: Objective
    optimizer: RowOptimizer
    rates: list[float]
    velocity: Tensor
    train: Batch
    val: Batch
    grad: Tensor

    def ahead(self, alpha: Tensor, create_graph: bool = False) -> Tensor:
        """w after the virtual step, (G, P)."""
        theta = self.cohort.theta.clone().requires_grad_()
        (grad,) = torch.autograd.grad(
            self.entropies(theta, alpha, self.train).sum(), theta, create_graph=create_graph
        )
        settings = self.config.client
        step = grad + settings.weight_decay * theta.detach()
        if settings.optimizer == "sgd":
            step = step + settings.momentum * self.velocity
        return self.cohort.theta - torch.tensor(self.rates).double()[:, None] * step

    def entropies(self, theta: Tensor, alpha: Tensor, batch: Batch) -> Tensor:
        out = PLAN(theta, SOFTMAX.mixture(alpha).weights, batch.x, counts=batch.counts)
        return cross_entropy(out.logits, batch.labels, batch.counts)

    def losses(self, theta: Tensor, alpha: Tensor) -> Tensor:
        """The validation losses (G) with their terms."""
        rows = slice(0, len(alpha))
        terms = self.objective(alpha, SOFTMAX.mixture(alpha).chances, rows)
        return self.entropies(theta, alpha, self.val) + terms


def problem(kind: str) -> Problem:
    """Two steps into training, so that there is momentum, at random alphas."""
    config = client_config(**CONFIGS[kind], order="second")
    cohort = fresh_cohort(range(4))
    assert cohort.alpha is not None
    cohort.alpha += random_rows(4, cohort.alpha[0].numel(), 5).view_as(cohort.alpha)
    batches = train_batches(cohort, 2)
    optimizer = Training.of(config.client).make(cohort.theta, batches.steps)
    velocity = torch.zeros_like(cohort.theta)
    for _ in range(2):
        batch = batches.train(4)
        done = weight_pass(PLAN, cohort.theta, SOFTMAX.mixture(cohort.alpha).weights, batch)
        velocity = 0.9 * velocity + clipped(done.grad) + 0.01 * cohort.theta
        optimizer.step(done.grad, 4)
    cosine = 1 + torch.cos(torch.pi * 2 / torch.tensor(batches.steps))
    rates = (0.1 * cosine / 2).tolist() if kind == "sgd" else [0.05] * 4
    budgets, server = budgets_of(cohort), start(PLAN, torch.float64)[2]
    objective = Objective.of(config.client, SOFTMAX, COSTS, budgets, server)
    architect = Recorded(PLAN, cohort, config.client, objective, SOFTMAX, "here")
    batch = Ahead(batches.val(4), batches)
    train = batches.train(4)
    architect.before(cohort, batch, 0, train, optimizer)
    made = (cohort, config, objective, optimizer, rates, velocity, train, batch.batch)
    return Problem(*made, architect.grad)


def clipped(grad: Tensor) -> Tensor:
    norms = grad.norm(dim=1, keepdim=True)
    return grad * (5.0 / (norms + 1e-6)).clamp(max=1)


class Ahead:
    """Batches of a search whose next validation batch is known."""

    def __init__(self, batch: Batch, batches) -> None:  # type: ignore[no-untyped-def]
        self.batch, self._batches = batch, batches

    def val(self, active: int, first: int = 0) -> Batch:
        return self.batch

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        return getattr(self._batches, name)


def relative(actual: Tensor, expected: Tensor) -> list[float]:
    """Error of each client's tensor, by norms."""
    return [float((a - e).norm() / e.norm()) for a, e in zip(actual, expected, strict=True)]


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_gradient_is_that_of_autograd_through_the_virtual_step(kind: str) -> None:
    """The whole gradient, and its second term alone: its sign and its size."""
    made = problem(kind)
    assert made.cohort.alpha is not None
    alpha = made.cohort.alpha.clone().requires_grad_()
    (exact,) = torch.autograd.grad(
        made.losses(made.ahead(alpha, create_graph=True), alpha).sum(), alpha
    )
    assert max(relative(made.grad, exact)) < 1e-3
    fixed = made.ahead(alpha.detach()).detach()
    (first,) = torch.autograd.grad(made.losses(fixed, alpha).sum(), alpha)
    assert max(relative(made.grad - first, exact - first)) < 1e-2
    assert min(relative(first, exact)) > 0.01  # the term is not lost in the tolerance


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_gradient_matches_differences_of_the_loss_after_the_virtual_step(kind: str) -> None:
    """No derivative of a derivative: each client's loss at w'(alpha) along random directions."""
    made = problem(kind)
    alpha = made.cohort.alpha
    assert alpha is not None
    step = 1e-4
    for seed in range(3):
        direction = random_rows(4, alpha[0].numel(), 50 + seed).view_as(alpha)
        moved = [alpha + sign * step * direction for sign in (1, -1)]
        up, down = (made.losses(made.ahead(a), a) for a in moved)
        slope = (made.grad * direction).sum((1, 2, 3))
        assert slope.tolist() == pytest.approx(
            ((up - down) / (2 * step)).tolist(), rel=5e-3, abs=1e-4
        )


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_the_virtual_step_is_the_optimisers_next_one(kind: str) -> None:
    """SGD's; Adam stands for plain gradient descent at its rate. And nothing has moved."""
    made = problem(kind)
    assert made.cohort.alpha is not None
    mixing = SOFTMAX.mixture(made.cohort.alpha)
    grad = weight_pass(PLAN, made.cohort.theta, mixing.weights, made.train).grad
    before = made.cohort.theta.clone()
    ahead, rates = made.optimizer.unrolled(grad, slice(1, 3))
    torch.testing.assert_close(ahead, made.ahead(made.cohort.alpha)[1:3])
    assert rates.tolist() == pytest.approx(made.rates[1:3])
    assert torch.equal(made.cohort.theta, before)
    if kind == "sgd":
        assert float(grad.norm(dim=1).max()) < 5  # the real step would be clipped
        made.optimizer.step(grad, 4)
        torch.testing.assert_close(ahead, made.cohort.theta[1:3])
