"""Training, evaluation and batch-norm recalibration of a cohort."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from metadnas_ext.config import ClientConfig
from metadnas_ext.data import ClientSplit, ImageStore
from metadnas_ext.nn import NetworkPlan
from metadnas_ext.nn.functional import correct, cross_entropy
from metadnas_ext.nn.stages import Weights
from metadnas_ext.search.cohort import Cohort, TrainBatches, passes
from metadnas_ext.search.finite import FiniteCheck, check_update
from metadnas_ext.search.graphs import GraphedStep
from metadnas_ext.search.optimizers import RowAdam, RowOptimizer, RowSGD
from metadnas_ext.search.relaxations import SOFTMAX, Relaxation
from metadnas_ext.search.steps import AlphaStep, LocalStep, WeightStep
from metadnas_ext.search.trajectory import Trajectory

Watch = Callable[[int], None]
"""Told how many steps are done, after each of them."""


@dataclass(frozen=True)
class Training:
    """How w is trained. `graphs`: the passes of a step are captured and replayed; see `graphs`."""

    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    clip: float
    graphs: bool = False

    @classmethod
    def of(cls, client: ClientConfig, lr: float | None = None) -> Training:
        rate = client.lr if lr is None else lr
        decay, clip = client.weight_decay, client.clip
        return cls(client.optimizer, rate, client.momentum, decay, clip, client.graphs)

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
    """Trains each client for its own number of steps, in place; its mean training loss, (G) on the
    CPU.

    With `alpha_step` it is a search, and `trajectory` records its steps on w. `where` names the
    phase in the DivergenceError of a loss or a result that is not finite.
    """
    optimizer = how.make(cohort.theta, batches.steps)
    take: LocalStep = alpha_step or WeightStep(plan)
    if how.graphs:
        take = GraphedStep(take)
    check = FiniteCheck(cohort, where)
    if trajectory is not None:
        trajectory.begin(cohort, batches.steps)
    total = cohort.theta.new_zeros(len(cohort.splits), dtype=torch.float64)
    for step in range(len(batches)):
        active = batches.active(step)
        batch = batches.train(active)
        if trajectory is not None:
            trajectory.done = step
        done = take(cohort, batches, step, batch, optimizer)
        check(done.losses)
        if trajectory is not None:
            assert alpha_step is not None
            again = partial(alpha_step.weight_losses, batches, step, batch)
            trajectory.record("theta", optimizer, done.grad, slice(0, active), again)
        optimizer.step(done.grad, active)
        plan.update_running(cohort.running[:active], done.stats, batch.sizes)
        total[:active] += done.losses
        if watch is not None:
            watch(step + 1)
    take.finish()
    check.finish()
    check_update(cohort, where)
    return mean_losses(total, batches.steps)


def mean_losses(total: Tensor, steps: Sequence[int]) -> Tensor:
    """Means over each client's steps of losses added up, (G) on the CPU."""
    return total.cpu() / torch.tensor(steps).clamp(min=1)


class Evaluation(NamedTuple):
    """Mean loss, accuracy (0..1) and number of images of each client, float64 (G) on the CPU."""

    loss: Tensor
    accuracy: Tensor
    size: Tensor

    @classmethod
    def of(cls, losses: Tensor, hits: Tensor, size: Tensor) -> Evaluation:
        """From sums (G) on any device, in one copy."""
        return cls(*torch.stack([losses / size, hits / size, size]).cpu())


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
    check = None if where is None else FiniteCheck(cohort, where)
    theta = cohort.theta
    loss = theta.new_zeros(len(theta), dtype=torch.float64)
    hits, size = torch.zeros_like(loss), torch.zeros_like(loss)
    weights = _weights_at_rest(cohort, relaxation)
    for batch in passes(store, cohort.splits, part, batch_size, theta.dtype, theta.device):
        out = plan(theta, weights, batch.x, running=cohort.running, counts=batch.counts)
        losses = cross_entropy(out.logits, batch.labels, batch.sizes)
        if check is not None:
            check(losses)
        loss += losses * batch.sizes
        hits += correct(out.logits, batch.labels, batch.sizes)
        size += batch.sizes
    if check is not None:
        check.finish()
    return Evaluation.of(loss, hits, size)


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
    weights, theta = _weights_at_rest(cohort, relaxation), cohort.theta
    total = torch.zeros_like(cohort.running)
    images = total.new_zeros(len(cohort.splits), 1)
    for batch in passes(store, cohort.splits, "train", batch_size, theta.dtype, theta.device):
        # A last batch of one image with one pixel has no variance; it is not needed.
        sizes = torch.where(batch.sizes > 1, batch.sizes, 0)
        out = plan(theta, weights, batch.x, counts=sizes)
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
