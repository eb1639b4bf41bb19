"""Exact meta-gradients: autograd in float64 through a local search of ordinary modules."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from metadnas_ext.config import ClientConfig
from metadnas_ext.nn import supernet_plan
from metadnas_ext.search.cohort import Batch, TrainBatches
from metadnas_ext.space import expected_cost

from ..nn import _darts
from ..search._clients import (
    BATCH,
    BUDGETS,
    CANDIDATES,
    COSTS,
    FINAL_TEMPERATURE,
    SHAPE,
    SPLITS,
    STORE,
    images,
    start,
)

PLAN = supernet_plan(SHAPE)


class Exact(NamedTuple):
    """One client's meta-gradient, where its search ended, and norms of w's unclipped gradients."""

    theta: Tensor
    alpha: Tensor
    end: tuple[Tensor, Tensor]
    norms: list[float]


def exact(
    client: int, settings: ClientConfig, epochs: int, running: Tensor, window: int = 0
) -> Exact:
    """Through the whole search, or its last `window` steps; the pull's α counts as the start.

    running: (R) statistics of the adapted network, constants of the method.
    """
    search = _Search(client, settings, epochs)
    leaves = search.begin()
    total = len(search.batches)
    for step in range(total):
        if step == total - window:
            leaves = search.begin()
        search.step(step)
    theta, alpha, pull = torch.autograd.grad(search.outer(running), leaves)
    return Exact(theta, alpha + pull, (search.theta.detach(), search.alpha.detach()), search.norms)


class _Search:
    """One client's search; every result is a new tensor that autograd knows the history of."""

    def __init__(self, client: int, settings: ClientConfig, epochs: int) -> None:
        self.client, self.settings = client, settings
        self.batches = TrainBatches(
            STORE, [SPLITS[client]], BATCH, epochs, True, 0, "round", 3, dtype=torch.float64
        )
        self.theta, _, self.alpha = start(PLAN, torch.float64)
        self.pull = self.alpha
        self.multiplier = settings.penalty
        self.norms: list[float] = []
        self._net = _darts.supernet(4, 3, 2, CANDIDATES, classes=3)
        self._buffers = {name: t.clone() for name, t in self._net.named_buffers()}
        self._moments = {name: [torch.zeros(()).double()] * 2 for name in ("theta", "alpha")}

    def begin(self) -> tuple[Tensor, Tensor, Tensor]:
        """Everything so far becomes a constant; w, α and the pull become leaves."""
        leaves = [t.detach().requires_grad_() for t in (self.theta, self.alpha, self.pull)]
        self.theta, self.alpha, self.pull = leaves
        self._moments = {
            name: [t.detach() for t in moments] for name, moments in self._moments.items()
        }
        return self.theta, self.alpha, self.pull

    def step(self, step: int) -> None:
        settings = self.settings
        progress = torch.tensor(step) / len(self.batches)
        temperature = float(FINAL_TEMPERATURE**progress)  # in single precision

        # At copies: w's own history depends on α, and the other way round.
        theta, alpha = self.theta.clone(), self.alpha.clone()
        weights = (alpha / temperature).softmax(-1)
        excess = expected_cost(COSTS, weights[0], weights[1]) / BUDGETS[self.client] - 1
        loss = self._entropy(self.batches.val(1), theta, weights)
        loss = loss + self._regularisers(alpha, excess)
        (grad,) = torch.autograd.grad(loss, alpha, create_graph=True)
        if settings.penalty_kind == "dual":
            raised = self.multiplier + settings.dual_rate * float(excess.detach())
            self.multiplier = max(0.0, raised)
        grad = grad + settings.alpha_weight_decay * self.alpha
        betas = (settings.alpha_beta1, 0.999)
        self.alpha = self.alpha - self._adam("alpha", grad, step, settings.alpha_lr, betas)

        theta, alpha = self.theta.clone(), self.alpha.clone()
        loss = self._entropy(self.batches.train(1), theta, (alpha / temperature).softmax(-1))
        (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
        norm = grad.norm()
        self.norms.append(float(norm.detach()))
        if settings.clip > 0:
            grad = grad * (settings.clip / (norm + 1e-6)).clamp(max=1.0)
        grad = grad + settings.weight_decay * self.theta
        if settings.optimizer == "adam":
            change = self._adam("theta", grad, step, settings.lr, (0.9, 0.999))
        else:
            velocity = settings.momentum * self._moments["theta"][0] + grad
            self._moments["theta"][0] = velocity
            angle = math.pi * step / len(self.batches)
            change = settings.lr * (1 + math.cos(angle)) / 2 * velocity
        self.theta = self.theta - change

    def outer(self, running: Tensor) -> Tensor:
        """The loss at the end: the whole validation part, running statistics, the penalty."""
        weights = self.alpha.softmax(-1)
        x, labels = images(SPLITS[self.client].val)
        self._net.eval()
        logits = self._logits(x, self.theta, weights, running)
        excess = expected_cost(COSTS, weights[0], weights[1]) / BUDGETS[self.client] - 1
        kind = self.settings.penalty_kind
        phi = F.relu(excess) ** 2 if kind == "squared_hinge" else excess
        return F.cross_entropy(logits, labels) + self.settings.penalty * phi

    def _adam(
        self, name: str, grad: Tensor, step: int, lr: float, betas: tuple[float, float]
    ) -> Tensor:
        mean, square = self._moments[name]
        mean = betas[0] * mean + (1 - betas[0]) * grad
        square = betas[1] * square + (1 - betas[1]) * grad**2
        self._moments[name] = [mean, square]
        size = (square / (1 - betas[1] ** (step + 1))) ** 0.5 + 1e-8
        return lr * mean / (1 - betas[0] ** (step + 1)) / size

    def _entropy(self, batch: Batch, theta: Tensor, weights: Tensor) -> Tensor:
        size = int(batch.sizes[0])
        x = batch.x[0, :size].permute(0, 3, 1, 2)
        return F.cross_entropy(self._logits(x, theta, weights), batch.labels[0, :size])

    def _regularisers(self, alpha: Tensor, excess: Tensor) -> Tensor:
        settings = self.settings
        phi = F.relu(excess) ** 2 if settings.penalty_kind == "squared_hinge" else excess
        p, q = alpha.softmax(-1), self.pull.softmax(-1)
        pull = (p * (p.log() - q.log())).sum(-1).mean()
        decay = alpha.exp().sum(-1).log().mean()
        return self.multiplier * phi + settings.kl * pull + settings.beta_decay * decay

    def _logits(
        self, x: Tensor, theta: Tensor, weights: Tensor, running: Tensor | None = None
    ) -> Tensor:
        buffers = {name: tensor.clone() for name, tensor in self._buffers.items()}
        if running is not None:
            buffers |= PLAN.running.views(running)
        state = PLAN.parameters.views(theta) | buffers
        return functional_call(self._net, state, (x, weights[0], weights[1]))
