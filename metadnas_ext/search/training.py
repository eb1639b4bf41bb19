"""Training, evaluation and batch-norm recalibration of a cohort."""

from __future__ import annotations

from collections.abc import Sequence
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
from metadnas_ext.search.cohort import Batch, Cohort, TrainBatches, passes
from metadnas_ext.search.objective import mixing_weights
from metadnas_ext.search.optimizers import RowAdam, RowOptimizer, RowSGD
from metadnas_ext.search.trajectory import Trajectory


class AlphaStep(Protocol):
    """Updates α of the first `active` clients before each step on w."""

    def __call__(self, cohort: Cohort, batch: Batch, progress: Tensor) -> None:
        """batch: validation images; progress (k): share of its steps each client has done."""

    def temperature(self, progress: Tensor) -> Tensor | None:
        """Temperature of the mixing weights (k), or None for 1."""


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
    trajectory: Trajectory | None = None,
) -> Tensor:
    """Trains each client for its own number of steps, in place; its mean training loss, (G).

    With `alpha_step` each step on w follows one on α (the alternating scheme of DARTS). `where`
    names the phase in the DivergenceError of a loss that is not finite. `trajectory` records the
    steps on w.
    """
    optimizer = how.make(cohort.theta, batches.steps)
    if trajectory is not None:
        trajectory.begin(cohort, batches.steps)
    steps = torch.tensor(batches.steps)
    total = torch.zeros(len(cohort.splits), dtype=torch.float64)
    for step in range(len(batches)):
        active = batches.active(step)
        progress = step / steps[:active]
        if trajectory is not None:
            trajectory.done = step
        weights = temperature = None
        if alpha_step is not None:
            alpha_step(cohort, batches.val(active), progress)
        if cohort.alpha is not None:
            temperature = None if alpha_step is None else alpha_step.temperature(progress)
            weights = mixing_weights(cohort.alpha[:active], temperature)
        batch = batches.train(active)
        theta = cohort.theta[:active].detach().requires_grad_()
        out = plan(theta, weights, batch.x, counts=batch.counts)
        losses = cross_entropy(out.logits, batch.labels, batch.counts)  # (k)
        check_finite(losses, cohort, where)
        (grad,) = torch.autograd.grad(losses.sum(), theta)
        if trajectory is not None:
            own = trajectory.clients
            again = partial(_losses_again, plan, batch.of(own), rows_of(temperature, own))
            trajectory.record("theta", optimizer, grad, again)
        optimizer.step(grad, active)
        plan.update_running(cohort.running[:active], out.stats, batch.sizes)
        total[:active] += losses.detach()
    return total / steps.clamp(min=1)


def rows_of(tensor: Tensor | None, clients: slice) -> Tensor | None:
    return None if tensor is None else tensor[clients]


def check_finite(values: Tensor, cohort: Cohort, where: str, what: str = "loss") -> None:
    """DivergenceError naming the first client whose loss (G) is not finite."""
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        value = float(values.detach()[row])
        raise DivergenceError(
            f"{where}: the {what} of client {cohort.clients[row]} is {value}; "
            f"a lower client.lr or client.alpha_lr, or client.clip, may help"
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
    where: str,
) -> Evaluation:
    """Evaluates each client on its own `part` of the data, with running statistics.

    `where` names the phase in the DivergenceError of a loss that is not finite.
    """
    loss = torch.zeros(len(cohort.splits), dtype=torch.float64)
    hits, size = torch.zeros_like(loss), torch.zeros_like(loss)
    weights = None if cohort.alpha is None else mixing_weights(cohort.alpha)
    for batch in passes(store, cohort.splits, part, batch_size, cohort.theta.dtype):
        out = plan(cohort.theta, weights, batch.x, running=cohort.running, counts=batch.counts)
        losses = cross_entropy(out.logits, batch.labels, batch.sizes)
        check_finite(losses, cohort, where)
        loss += losses * batch.sizes
        hits += correct(out.logits, batch.labels, batch.sizes)
        size += batch.sizes
    return Evaluation(loss / size, hits / size, size)


@torch.no_grad()
def recalibrate(plan: NetworkPlan, cohort: Cohort, store: ImageStore, batch_size: int) -> None:
    """Replaces running statistics by their mean over one pass of the training data."""
    total = torch.zeros_like(cohort.running)
    images = torch.zeros(len(cohort.splits), 1, dtype=total.dtype)
    for batch in passes(store, cohort.splits, "train", batch_size, cohort.theta.dtype):
        # A last batch of one image with one pixel has no variance; it is not needed.
        sizes = torch.where(batch.sizes > 1, batch.sizes, 0)
        out = plan(cohort.theta, None, batch.x, counts=sizes)
        fresh = torch.zeros_like(total)
        plan.update_running(fresh, out.stats, sizes, momentum=1.0)
        total += fresh * sizes[:, None]
        images += sizes[:, None]
    cohort.running.copy_(torch.where(images > 0, total / images.clamp(min=1), cohort.running))


def cohort_of(
    splits: Sequence[ClientSplit], theta: Tensor, running: Tensor, alpha: Tensor | None = None
) -> Cohort:
    """A cohort that starts from one state: theta (P), running (R), alpha (2, E, O)."""
    count = len(splits)

    def copies(row: Tensor) -> Tensor:
        return row.expand(count, *row.shape).clone()

    return Cohort(
        list(splits),
        copies(theta),
        copies(running),
        None if alpha is None else copies(alpha),
    )


def _losses_again(
    plan: NetworkPlan,
    batch: Batch,
    temperature: Tensor | None,
    theta: Tensor,
    alpha: Tensor,
    server: Tensor,
) -> Tensor:
    """Training losses (k) of a recorded step at other theta (k, P) and alpha (k, 2, E, O)."""
    weights = mixing_weights(alpha, temperature)
    out = plan(theta, weights, batch.x.to(theta.dtype), counts=batch.counts)
    return cross_entropy(out.logits, batch.labels, batch.counts)
