"""Training and judging discrete networks: shared by every method's last step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metadnas_ext.federated.federation import Federation
from metadnas_ext.nn import NetworkPlan, derived_plan, inherit_indices
from metadnas_ext.report.result import ClientResult, Kept
from metadnas_ext.search.cohort import Cohort, TrainBatches, ordered
from metadnas_ext.search.training import Evaluation, Training, evaluate, recalibrate, train
from metadnas_ext.space import Architecture, genotype_cost


@dataclass(frozen=True)
class Trained:
    """One client's discrete network after training: val and test are accuracies in 0..1."""

    genotype: Architecture
    val: float
    test: float


def inherit(
    supernet: NetworkPlan, genotype: Architecture, theta: Tensor, running: Tensor
) -> tuple[Tensor, Tensor]:
    """The derived network's rows from the supernet's: theta (P), running (R)."""
    derived = derived_plan(supernet.shape, genotype)
    index, running_index = inherit_indices(supernet, derived, genotype)
    return theta[index], running[running_index]


def finetune(
    federation: Federation,
    genotypes: dict[int, Architecture],
    start: dict[int, tuple[Tensor, Tensor]],
    epochs: int,
    key: str,
    recalibrated: bool = True,
) -> dict[int, Trained]:
    """Recalibrates (if asked), fine-tunes and evaluates each client's network on its own data.

    Clients with the same architecture train together. `start` holds theta (P) and running (R) rows;
    `key` separates the random draws of different uses.
    """
    results: dict[int, Trained] = {}
    for genotype in sorted(set(genotypes.values()), key=str):
        clients = [c for c, g in genotypes.items() if g == genotype]
        plan = derived_plan(federation.shape, genotype)
        cohort = _stack(federation, clients, start)
        config = federation.config
        size = config.client.batch_size
        if recalibrated:
            recalibrate(plan, cohort, federation.store, size)
        train_locally(federation, plan, cohort, epochs, config.personalise.finetune_lr, key)
        val = evaluate(plan, cohort, federation.store, "val", size, key)
        test = evaluate(plan, cohort, federation.store, "test", size, key)
        for row, client in enumerate(cohort.clients):
            results[client] = Trained(genotype, float(val.accuracy[row]), float(test.accuracy[row]))
    return results


def train_locally(
    federation: Federation,
    plan: NetworkPlan,
    cohort: Cohort,
    epochs: int,
    lr: float | None,
    key: str,
) -> Tensor:
    """Plain training of each client on its own data, in place; mean losses (G)."""
    config = federation.config
    batches = TrainBatches(
        federation.store,
        cohort.splits,
        config.client.batch_size,
        epochs,
        config.data.augment,
        config.run.seed,
        key,
    )
    return train(plan, cohort, batches, Training.of(config.client, lr), key)


def client_result(
    federation: Federation, client: int, trained: Trained, kept: Kept
) -> ClientResult:
    split = federation.splits[client]
    return ClientResult(
        client=client,
        seen=client in federation.seen,
        train_size=len(split.train),
        test_size=len(split.test),
        test_accuracy=trained.test,
        val_accuracy=trained.val,
        cost=genotype_cost(federation.costs, trained.genotype),
        budget=float(federation.budgets[client]),
        unit=federation.costs.unit,
        kept=kept,
        genotype=trained.genotype.to_json(),
    )


def joiner(cohorts: Sequence[Cohort]) -> Callable[[Sequence[Tensor]], Tensor]:
    """Joins one tensor (G, ...) from each cohort, rows in ascending order of clients.

    Sums over clients then add up in one order, however the clients were grouped.
    """
    order = torch.tensor([client for cohort in cohorts for client in cohort.clients]).argsort()
    return lambda parts: torch.cat(list(parts))[order]


def mean_over_clients(values: Tensor, weights: Tensor) -> float:
    return float((values * weights).sum() / weights.sum())


def round_accuracy(evaluation: Evaluation) -> tuple[float, float]:
    """Loss and accuracy over all validation images of the round's clients."""
    return (
        mean_over_clients(evaluation.loss, evaluation.size),
        mean_over_clients(evaluation.accuracy, evaluation.size),
    )


def _stack(
    federation: Federation, clients: Sequence[int], start: dict[int, tuple[Tensor, Tensor]]
) -> Cohort:
    splits = ordered(federation.of(clients), federation.config.client.batch_size)
    rows = [start[split.client] for split in splits]
    return Cohort(splits, torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows]))
