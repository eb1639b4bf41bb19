"""Training, evaluation and batch-norm recalibration of a cohort."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from metadnas_ext.config import ClientConfig
from metadnas_ext.data import ClientSplit, ImageStore
from metadnas_ext.errors import DivergenceError
from metadnas_ext.nn import NetworkPlan
from metadnas_ext.nn.functional import correct, cross_entropy
from metadnas_ext.nn.stages import Weights
from metadnas_ext.search.cohort import Batch, Cohort, TrainBatches, passes
from metadnas_ext.search.optimizers import RowAdam, RowOptimizer, RowSGD
from metadnas_ext.search.relaxations import SOFTMAX, Relaxation
from metadnas_ext.search.trajectory import Losses, Trajectory


class Pass(NamedTuple):
    """A pass over a training batch: losses (k), batch statistics (k, R), gradient of w (k, P)."""

    losses: Tensor
    stats: Tensor
    grad: Tensor


Watch = Callable[[int], None]
"""Told how many steps are done, after each of them."""

DIVERGENCE_HINT = "a lower client.lr or client.alpha_lr, or client.clip, may help"


class AlphaStep(Protocol):
    """What a search adds to the training of w."""

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

    def weight_losses(
        self, batches: TrainBatches, step: int, train: Batch, clients: slice
    ) -> Losses:
        """The losses of that pass again, of some of its clients."""


@dataclass(frozen=True)
class Training:
    """How w is trained."""

    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    clip: float

    @classmethod
    def of(cls, client: ClientConfig, lr: float | None = None) -> Training:
        rate = client.lr if lr is None else lr
        return cls(client.optimizer, rate, client.momentum, client.weight_decay, client.clip)

    def make(self, rows: Tensor, steps: list[int]) -> RowOptimizer:
        if self.optimizer == "sgd":
            return RowSGD(rows, self.lr, self.momentum, self.weight_decay, steps, clip=self.clip)
        return RowAdam(rows, self.lr, weight_decay=self.weight_decay, clip=self.clip)


def train(
    plan: NetworkPlan,
    cohort: Cohort,
    batches: TrainBatches,
    how: Training,
    where: str,
    alpha_step: AlphaStep | None = None,
    watch: Watch | None = None,
    trajectory: Trajectory | None = None,
) -> Tensor:
    """Trains each client for its own number of steps, in place; its mean training loss, (G).

    With `alpha_step` it is a search, and `trajectory` records its steps on w. `where` names the
    phase in the DivergenceError of a loss or a result that is not finite.
    """
    optimizer = how.make(cohort.theta, batches.steps)
    if trajectory is not None:
        trajectory.begin(cohort, batches.steps)
    total = torch.zeros(len(cohort.splits), dtype=torch.float64)
    for step in range(len(batches)):
        active = batches.active(step)
        batch = batches.train(active)
        if trajectory is not None:
            trajectory.done = step
        if alpha_step is None:
            done = weight_pass(plan, cohort.theta[:active], None, batch)
        else:
            alpha_step.before(cohort, batches, step, batch, optimizer)
            done = alpha_step.weight_pass(cohort, batches, step, batch)
        check_finite(done.losses, cohort, where)
        if trajectory is not None:
            assert alpha_step is not None
            again = partial(alpha_step.weight_losses, batches, step, batch)
            trajectory.record("theta", optimizer, done.grad, slice(0, active), again)
        optimizer.step(done.grad, active)
        plan.update_running(cohort.running[:active], done.stats, batch.sizes)
        total[:active] += done.losses
        if watch is not None:
            watch(step + 1)
    check_update(cohort, where)
    return total / torch.tensor(batches.steps).clamp(min=1)


def weight_pass(
    plan: NetworkPlan,
    theta: Tensor,
    weights: Weights | None,
    batch: Batch,
    running: Tensor | None = None,
) -> Pass:
    """Cross-entropy of theta (k, P) on a batch, and its gradient. running (k, R): in eval mode."""
    theta = theta.detach().requires_grad_()
    out = plan(theta, weights, batch.x, running=running, counts=batch.counts)
    losses = cross_entropy(out.logits, batch.labels, batch.counts)  # (k)
    (grad,) = torch.autograd.grad(losses.sum(), theta)
    return Pass(losses.detach(), out.stats, grad)


def check_update(cohort: Cohort, where: str) -> None:
    """DivergenceError if a state that training ended with is not finite.

    A loss need not show it: a maximum, as in ReLU, may drop a NaN.
    """
    check_finite(cohort.theta, cohort, where, "update of w")
    check_finite(cohort.running, cohort, where, "update of the running statistics")
    if cohort.alpha is not None:
        check_finite(cohort.alpha, cohort, where, "update of alpha")


def check_finite(
    values: Tensor, cohort: Cohort, where: str, what: str = "loss", first: int = 0
) -> None:
    """DivergenceError naming every client whose part of `values` (k, ...) is not finite.

    `values` belongs to k clients of the cohort from row `first`; the message is about the first of
    those concerned.
    """
    rows = values.detach()[:, None].flatten(1)  # (k, elements)
    bad = ~torch.isfinite(rows)
    if not bool(bad.any()):
        return
    found = {
        cohort.clients[first + row]: float(rows[row, bad[row]][0])
        for row in bad.any(1).nonzero().flatten().tolist()
    }
    client, value = next(iter(found.items()))
    raise DivergenceError(
        f"{where}: the {what} of client {client} is {value}; {DIVERGENCE_HINT}",
        {client: f"{what} is {value}" for client, value in found.items()},
    )


class Evaluation(NamedTuple):
    """Mean loss, accuracy (0..1) and number of images of each client, float64 (G)."""

    loss: Tensor
    accuracy: Tensor
    size: Tensor


@torch.no_grad()
def evaluate(
    plan: NetworkPlan,
    cohort: Cohort,
    store: ImageStore,
    part: str,
    batch_size: int,
    where: str | None,
    relaxation: Relaxation = SOFTMAX,
) -> Evaluation:
    """Evaluates each client on its own `part` of the data, with running statistics.

    A supernet mixes as `relaxation` does at rest. `where` names the phase in the DivergenceError of
    a loss that is not finite; None: no error.
    """
    loss = torch.zeros(len(cohort.splits), dtype=torch.float64)
    hits, size = torch.zeros_like(loss), torch.zeros_like(loss)
    weights = _weights_at_rest(cohort, relaxation)
    for batch in passes(store, cohort.splits, part, batch_size, cohort.theta.dtype):
        out = plan(cohort.theta, weights, batch.x, running=cohort.running, counts=batch.counts)
        losses = cross_entropy(out.logits, batch.labels, batch.sizes)
        if where is not None:
            check_finite(losses, cohort, where)
        loss += losses * batch.sizes
        hits += correct(out.logits, batch.labels, batch.sizes)
        size += batch.sizes
    return Evaluation(loss / size, hits / size, size)


@torch.no_grad()
def recalibrate(
    plan: NetworkPlan,
    cohort: Cohort,
    store: ImageStore,
    batch_size: int,
    relaxation: Relaxation = SOFTMAX,
) -> None:
    """Replaces running statistics by their mean over one pass of the training data.

    A supernet mixes as `relaxation` does at rest.
    """
    weights = _weights_at_rest(cohort, relaxation)
    total = torch.zeros_like(cohort.running)
    images = torch.zeros(len(cohort.splits), 1, dtype=total.dtype)
    for batch in passes(store, cohort.splits, "train", batch_size, cohort.theta.dtype):
        # A last batch of one image with one pixel has no variance; it is not needed.
        sizes = torch.where(batch.sizes > 1, batch.sizes, 0)
        out = plan(cohort.theta, weights, batch.x, counts=sizes)
        fresh = torch.zeros_like(total)
        plan.update_running(fresh, out.stats, sizes, momentum=1.0)
        total += fresh * sizes[:, None]
        images += sizes[:, None]
    cohort.running.copy_(torch.where(images > 0, total / images.clamp(min=1), cohort.running))


def cohort_of(
    splits: Sequence[ClientSplit], theta: Tensor, running: Tensor, alpha: Tensor | None = None
) -> Cohort:
    """A cohort that starts from one state: theta (P), running (R), alpha (types, E, O)."""
    count = len(splits)

    def copies(row: Tensor) -> Tensor:
        return row.expand(count, *row.shape).clone()

    return Cohort(
        list(splits),
        copies(theta),
        copies(running),
        None if alpha is None else copies(alpha),
    )


def _weights_at_rest(cohort: Cohort, relaxation: Relaxation) -> Weights | None:
    return None if cohort.alpha is None else relaxation.mixture(cohort.alpha).weights
