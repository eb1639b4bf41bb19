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
from metadnas_ext.search.cohort import Batch, TrainBatches, steps_per_epoch
from metadnas_ext.seeding import generator
from metadnas_ext.space import CostTable, expected_cost

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
    client: int,
    settings: ClientConfig,
    epochs: int,
    running: Tensor,
    window: int = 0,
    costs: CostTable = COSTS,
) -> Exact:
    """Through the whole search, or its last `window` steps; the pull's α counts as the start.

    running: (R) statistics of the adapted network, constants of the method.
    """
    search = _Search(client, settings, epochs, costs)
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

    def __init__(self, client: int, settings: ClientConfig, epochs: int, costs: CostTable) -> None:
        self.client, self.settings, self.costs = client, settings, costs
        self.warmup = settings.alpha_warmup * steps_per_epoch(SPLITS[client], BATCH)
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
        progress = torch.tensor(step) / len(self.batches)
        temperature = float(FINAL_TEMPERATURE**progress)  # in single precision
        if step >= self.warmup:
            self._step_on_alpha(step, temperature)
        self._step_on_theta(step, temperature)

    def _step_on_alpha(self, step: int, temperature: float) -> None:
        settings = self.settings
        # At copies: w's own history depends on α, and the other way round.
        theta, alpha = self.theta.clone(), self.alpha.clone()
        weights, chances = self._mixed(alpha, temperature, ("val", step))
        excess = expected_cost(self.costs, chances[0], chances[1]) / BUDGETS[self.client] - 1
        loss = self._entropy(self.batches.val(1), theta, weights)
        loss = loss + self._regularisers(alpha, excess)
        (grad,) = torch.autograd.grad(loss, alpha, create_graph=True)
        if settings.penalty_kind == "dual":
            raised = self.multiplier + settings.dual_rate * float(excess.detach())
            self.multiplier = max(0.0, raised)
        grad = grad + settings.alpha_weight_decay * self.alpha
        betas = (settings.alpha_beta1, 0.999)
        done = step - self.warmup
        self.alpha = self.alpha - self._adam("alpha", grad, done, settings.alpha_lr, betas)

    def _step_on_theta(self, step: int, temperature: float) -> None:
        settings = self.settings
        theta, alpha = self.theta.clone(), self.alpha.clone()
        weights, _ = self._mixed(alpha, temperature, ("train", step))
        loss = self._entropy(self.batches.train(1), theta, weights)
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
        weights, chances = self._mixed(self.alpha, FINAL_TEMPERATURE)
        x, labels = images(SPLITS[self.client].val)
        self._net.eval()
        logits = self._logits(x, self.theta, weights, running)
        excess = expected_cost(self.costs, chances[0], chances[1]) / BUDGETS[self.client] - 1
        kind = self.settings.penalty_kind
        phi = F.relu(excess) ** 2 if kind == "squared_hinge" else excess
        return F.cross_entropy(logits, labels) + self.settings.penalty * phi

    def _mixed(
        self, alpha: Tensor, temperature: float, drawn: tuple[str, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Weights of the candidates and chances that they are kept; at rest, or `drawn` for the
        batch of a part and a step."""
        if self.settings.relaxation == "sigmoid":
            weights = (alpha / temperature).sigmoid()
            return weights, weights / weights.sum(-1, keepdim=True)
        if self.settings.relaxation == "softmax":
            weights = (alpha / temperature).softmax(-1)
            return weights, weights
        chances = alpha.softmax(-1)
        if drawn is None:
            return chances, chances
        part, step = drawn
        rng = generator(0, "round", 3, f"relaxation/{part}", self.client, step)
        waits = torch.empty(alpha.shape, dtype=torch.float64).exponential_(generator=rng)
        return ((alpha - waits.log()) / temperature).softmax(-1), chances

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
        p, q = (self._mixed(a, 1.0)[1] for a in (alpha, self.pull))
        pull = (p * (p.log() - q.log())).sum(-1).mean()
        decay = alpha.exp().sum(-1).log().mean()
        total = self.multiplier * phi + settings.kl * pull + settings.beta_decay * decay
        if settings.relaxation == "sigmoid":
            total = total - settings.zero_one * (alpha.sigmoid() - 0.5).square().mean()
        return total

    def _logits(
        self, x: Tensor, theta: Tensor, weights: Tensor, running: Tensor | None = None
    ) -> Tensor:
        buffers = {name: tensor.clone() for name, tensor in self._buffers.items()}
        if running is not None:
            buffers |= PLAN.running.views(running)
        state = PLAN.parameters.views(theta) | buffers
        return functional_call(self._net, state, (x, weights[0], weights[1]))
