"""Training and judging discrete networks: shared by every method's last step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods.curve import AdaptationCurve
from metadnas_ext.nn import NetworkPlan, derived_plan, inherit_indices
from metadnas_ext.placement import to_device
from metadnas_ext.report.result import ClientResult, Kept
from metadnas_ext.search.cohort import Batch, Cohort, TrainBatches, ordered, steps_per_epoch
from metadnas_ext.search.finite import FiniteCheck
from metadnas_ext.search.steps import weight_pass
from metadnas_ext.search.training import (
    Training,
    Watch,
    evaluate,
    recalibrate,
    train,
)
from metadnas_ext.space import Architecture, genotype_cost

LocalTraining = Callable[[NetworkPlan, Cohort, int, float | None, str, Watch | None], Tensor]
"""Trains a cohort in place: `train_locally` in a federation."""


@dataclass(frozen=True)
class Trained:
    """One client's discrete network after training. Accuracies are in 0..1.

    discrete: test accuracy before fine-tuning; steps: optimiser steps on w since the server's
    state; adaptation: see `AdaptationCurve.points`; weights: parameters and running statistics by
    name, on the CPU.
    """

    genotype: Architecture
    val: float
    test: float
    discrete: float | None = None
    steps: int | None = None
    adaptation: dict[str, float] | None = None
    weights: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)


class Searched(NamedTuple):
    """A client's supernet behind its search: test accuracy, expected cost of its mixture."""

    accuracy: float
    expected_cost: float


def inherit(
    supernet: NetworkPlan, genotype: Architecture, theta: Tensor, running: Tensor
) -> tuple[Tensor, Tensor]:
    """The derived network's rows from the supernet's: theta (P), running (R)."""
    derived = derived_plan(supernet.shape, genotype)
    indices = inherit_indices(supernet, derived, genotype)
    index, running_index = (to_device(i, theta.device) for i in indices)
    return theta[index], running[running_index]


def inherited(
    supernet: NetworkPlan, cohort: Cohort, genotypes: dict[int, Architecture]
) -> dict[int, tuple[Tensor, Tensor]]:
    """What each client's network inherits from its row of the cohort."""
    rows = dict(zip(cohort.clients, zip(cohort.theta, cohort.running, strict=True), strict=True))
    return {c: inherit(supernet, genotype, *rows[c]) for c, genotype in genotypes.items()}


def train_locally(
    federation: Federation,
    plan: NetworkPlan,
    cohort: Cohort,
    epochs: int,
    lr: float | None,
    key: str,
    watch: Watch | None = None,
) -> Tensor:
    """Plain training of each client on its own data, in place; mean losses (G) on the CPU.

    `lr` replaces the configured rate; `watch`: see `train`.
    """
    batches = local_batches(federation, cohort, epochs, key)
    how = Training.of(federation.config.client, lr)
    return train(plan, cohort, batches, how, key, watch=watch)


def finetune(
    federation: Federation,
    genotypes: dict[int, Architecture],
    start: dict[int, tuple[Tensor, Tensor]],
    epochs: int,
    key: str,
    *,
    curve: AdaptationCurve,
    before: int = 0,
    recalibrated: bool = True,
    training: LocalTraining | None = None,
) -> dict[int, Trained]:
    """Recalibrates (if asked), fine-tunes and evaluates each client's network on its own data.

    Clients with the same architecture train together. `start` holds theta (P) and running (R) rows;
    `key` separates the random draws of different uses; `before` counts the local epochs that
    clients have had since the server's state; `training` replaces plain training.
    """
    training = training or partial(train_locally, federation)
    config, store = federation.config, federation.store
    size = config.client.batch_size
    results: dict[int, Trained] = {}
    for genotype in sorted(set(genotypes.values()), key=str):
        clients = [c for c, g in genotypes.items() if g == genotype]
        plan = derived_plan(federation.shape, genotype)
        cohort = _stack(federation, clients, start)
        watch = curve.follow(plan, cohort, before, epochs)
        if recalibrated:
            recalibrate(plan, cohort, store, size)
        discrete = evaluate(plan, cohort, store, "test", size, key)
        training(plan, cohort, epochs, config.personalise.finetune_lr, key, watch)
        val = evaluate(plan, cohort, store, "val", size, key)
        test = evaluate(plan, cohort, store, "test", size, key)
        theta, running = cohort.theta.cpu(), cohort.running.cpu()
        for row, (client, split) in enumerate(zip(cohort.clients, cohort.splits, strict=True)):
            reached = float(test.accuracy[row])
            weights = plan.parameters.views(theta[row])
            weights |= plan.running.views(running[row])
            results[client] = Trained(
                genotype,
                float(val.accuracy[row]),
                reached,
                discrete=float(discrete.accuracy[row]),
                steps=(before + epochs) * steps_per_epoch(split, size),
                adaptation=curve.points(client, reached),
                weights=weights,
            )
    return results


def local_batches(federation: Federation, cohort: Cohort, epochs: int, key: str) -> TrainBatches:
    """The clients' own training data, drawn with generators keyed by `key`."""
    config = federation.config
    return TrainBatches(
        federation.store,
        cohort.splits,
        config.client.batch_size,
        epochs,
        config.data.augment,
        config.run.seed,
        key,
        device=cohort.theta.device,
    )


def weight_gradient(
    plan: NetworkPlan,
    theta: Tensor,
    batch: Batch,
    check: FiniteCheck,
    running: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (k), their gradient (k, P) at `theta` (k, P) and batch statistics (k, R).

    Of a network without mixed edges, for the first k clients of `check`'s cohort. `running` (k, R):
    in eval mode.
    """
    done = weight_pass(plan, theta, None, batch, running)
    check(done.losses)
    return done.losses, done.grad, done.stats


def client_result(
    federation: Federation,
    client: int,
    trained: Trained,
    kept: Kept,
    searched: Searched | None = None,
) -> ClientResult:
    split = federation.splits[client]
    return ClientResult(
        client=client,
        seen=client in federation.seen,
        train_size=len(split.train),
        test_size=len(split.test),
        test_accuracy=trained.test,
        val_accuracy=trained.val,
        cost=genotype_cost(federation.costs_of(client), trained.genotype),
        budget=float(federation.budgets[client]),
        unit=federation.costs_of(client).unit,
        device=federation.device_name(client),
        kept=kept,
        genotype=trained.genotype.to_json(),
        supernet_accuracy=None if searched is None else searched.accuracy,
        discrete_accuracy=trained.discrete,
        expected_cost=None if searched is None else searched.expected_cost,
        steps=trained.steps,
        adaptation=trained.adaptation,
        weights=trained.weights,
    )


def _stack(
    federation: Federation, clients: Sequence[int], start: dict[int, tuple[Tensor, Tensor]]
) -> Cohort:
    splits = ordered(federation.of(clients), federation.config.client.batch_size)
    rows = [start[split.client] for split in splits]
    return Cohort(splits, torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows]))
