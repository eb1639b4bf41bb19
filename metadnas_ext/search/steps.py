"""A step of local training up to the gradient of w: what `training.train` calls again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from metadnas_ext.nn import NetworkPlan
from metadnas_ext.nn.functional import cross_entropy
from metadnas_ext.nn.stages import Weights
from metadnas_ext.search.cohort import Batch, Cohort
from metadnas_ext.search.optimizers import RowOptimizer
from metadnas_ext.search.trajectory import Losses


class Pass(NamedTuple):
    """A pass over a training batch: losses (k), batch statistics (k, R), gradient of w (k, P)."""

    losses: Tensor
    stats: Tensor
    grad: Tensor


class StepBatches(Protocol):
    """What a step may ask of the batches of a cohort; see `TrainBatches`."""

    def active(self, step: int) -> int: ...

    def within(self, step: int, epochs: int) -> int: ...

    def progress(self, step: int) -> Tensor: ...

    def generators(self, step: int, purpose: str, rows: slice) -> Sequence[torch.Generator]: ...

    def val(self, active: int, first: int = 0) -> Batch: ...


class LocalStep(Protocol):
    """What a step of local training does before w moves."""

    def __call__(
        self,
        cohort: Cohort,
        batches: StepBatches,
        step: int,
        train: Batch,
        optimizer: RowOptimizer,
    ) -> Pass:
        """The pass over `train` on which w then takes step `step` with `optimizer`.

        A search moves α, too.
        """

    def kind(self, batches: StepBatches, step: int) -> tuple[int, ...]:
        """Steps of one kind, on batches of one shape, call the same operators on as large tensors.

        The number of clients that train comes first.
        """

    def validating(self, batches: StepBatches, step: int) -> slice | None:
        """The clients of whom it asks for a validation batch, once."""

    def finish(self) -> None:
        """Behind the last step: DivergenceError if something was not finite; see `FiniteCheck`."""


class AlphaStep(LocalStep, Protocol):
    """A step that searches."""

    def weight_losses(
        self, batches: StepBatches, step: int, train: Batch, clients: slice
    ) -> Losses:
        """The losses of its pass again, of some of its clients."""


class WeightStep:
    """A step of a network without mixed edges, which has no α."""

    def __init__(self, plan: NetworkPlan) -> None:
        self._plan = plan

    def __call__(
        self,
        cohort: Cohort,
        batches: StepBatches,
        step: int,
        train: Batch,
        optimizer: RowOptimizer,
    ) -> Pass:
        return weight_pass(self._plan, cohort.theta[: batches.active(step)], None, train)

    def kind(self, batches: StepBatches, step: int) -> tuple[int, ...]:
        return (batches.active(step),)

    def validating(self, batches: StepBatches, step: int) -> slice | None:
        return None

    def finish(self) -> None:
        """Nothing to tell: the losses are those of the training."""


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
