"""Rounds after the search: each client trains its own architecture inside the shared supernet.

What weights learn in a mixture of all candidates is of little use to the discrete network that is
cut out of it. So the last rounds may train what clients will keep: a network whose parameters are
columns of the supernet's. The server averages each number over the clients that have it, as in Diao
et al., "HeteroFL" (ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods.derived import train_locally
from metadnas_ext.nn import NetworkPlan, derived_plan, inherit_indices
from metadnas_ext.placement import index_on, to_device
from metadnas_ext.search.cohort import Cohort
from metadnas_ext.search.training import Evaluation, evaluate
from metadnas_ext.space import Architecture


class Share(NamedTuple):
    """A group's part of such a round.

    cohort: the clients' supernets, in which their sub-networks have moved; theta, running: bool
    (G, P) and (G, R), which numbers those are; training losses (G) on the CPU; validation figures.
    """

    cohort: Cohort
    theta: Tensor
    running: Tensor
    losses: Tensor
    val: Evaluation


def train_subnetworks(
    federation: Federation,
    supernet: NetworkPlan,
    cohort: Cohort,
    genotypes: Mapping[int, Architecture],
    lr: float,
    where: str,
) -> Share:
    """A round's training of each client's architecture, in place in its row of the supernet.

    Clients with the same architecture train together.
    """
    config, store = federation.config.client, federation.store
    losses = torch.zeros(len(cohort.splits), dtype=torch.float64)
    figures = [torch.zeros_like(losses) for _ in Evaluation._fields]
    theta = torch.zeros_like(cohort.theta, dtype=torch.bool)
    running = torch.zeros_like(cohort.running, dtype=torch.bool)
    for genotype in sorted({genotypes[client] for client in cohort.clients}, key=str):
        rows = [row for row, c in enumerate(cohort.clients) if genotypes[c] == genotype]
        plan = derived_plan(federation.shape, genotype)
        device = cohort.theta.device
        indices = inherit_indices(supernet, plan, genotype)
        columns, statistics = (to_device(index, device) for index in indices)
        at = index_on(device, rows)[:, None]  # (k, 1)
        own = Cohort(
            [cohort.splits[row] for row in rows],
            cohort.theta[at, columns],
            cohort.running[at, statistics],
        )
        losses[rows] = train_locally(federation, plan, own, config.epochs, lr, where)
        val = evaluate(plan, own, store, "val", config.batch_size, where)
        for figure, values in zip(figures, val, strict=True):
            figure[rows] = values
        cohort.theta[at, columns], theta[at, columns] = own.theta, True
        cohort.running[at, statistics], running[at, statistics] = own.running, True
    return Share(cohort, theta, running, losses, Evaluation(*figures))


def shared_numbers(
    supernet: NetworkPlan, genotype: Architecture, local_theta: Tensor, local_running: Tensor
) -> int:
    """How many numbers of a sub-network are not local: bool (P) and (R) of the supernet."""
    columns, statistics = inherit_indices(
        supernet, derived_plan(supernet.shape, genotype), genotype
    )
    return int((~local_theta[columns]).sum() + (~local_running[statistics]).sum())


def mean_over_owners(rows: Tensor, owned: Tensor, sizes: Tensor, otherwise: Tensor) -> Tensor:
    """Mean (P) of `rows` (G, P) over the clients that own a number, weighed by `sizes` (G).

    `owned`: bool (G, P); what nobody owns is `otherwise` (P). `sizes` are on the CPU.
    """
    weights = owned * to_device(sizes.double(), owned.device)[:, None]  # (G, P)
    total = weights.sum(0)
    mean = (weights * rows.double()).sum(0) / torch.where(total > 0, total, 1.0)
    return torch.where(total > 0, mean, otherwise.double()).to(otherwise.dtype)
