"""Rounds after the search: each client trains its own architecture inside the shared supernet.

What weights learn in a mixture of all candidates is of little use to the discrete network that is
cut out of it. So the last rounds may train what clients will keep: a network whose parameters are
columns of the supernet's. The server averages each number over the clients that have it, as in Diao
et al., "HeteroFL" (ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods.derived import train_locally
from metadnas_ext.methods.exchange import Reply, replies_of, training_metrics, weights
from metadnas_ext.methods.local_parts import LocalParts
from metadnas_ext.nn import NetworkPlan, derived_plan, inherit_indices
from metadnas_ext.placement import index_on, to_device
from metadnas_ext.search.cohort import Cohort
from metadnas_ext.search.training import evaluate
from metadnas_ext.space import Architecture


def train_subnetworks(
    federation: Federation,
    supernet: NetworkPlan,
    cohort: Cohort,
    genotypes: Mapping[int, Architecture],
    local: LocalParts,
    lr: float,
    where: str,
) -> list[Reply]:
    """A round's training of each client's architecture, in place in its row of the supernet.

    Clients with the same architecture train together. A reply holds the numbers of its client's
    network, theta (p) and running (r), with zeros for the parts that stay on the client.
    """
    config, store = federation.config.client, federation.store
    stays = local.masks(cohort.theta[0], cohort.running[0])
    replies = []
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
        losses = train_locally(federation, plan, own, config.epochs, lr, where)
        val = evaluate(plan, own, store, "val", config.batch_size, where)
        cohort.theta[at, columns], cohort.running[at, statistics] = own.theta, own.running
        hidden = [to_device(m[i], device) for m, i in zip(stays, indices, strict=True)]
        sent = {
            "theta": own.theta.masked_fill(hidden[0], 0),
            "running": own.running.masked_fill(hidden[1], 0),
        }
        found = replies_of(own, sent, training_metrics(losses, val))
        replies += [replace(reply, architecture=genotype) for reply in found]
    return replies


def average(
    supernet: NetworkPlan, replies: Sequence[Reply], theta: Tensor, running: Tensor
) -> tuple[Tensor, Tensor]:
    """The server's theta (P) and running (R) behind such a round: each number over its owners."""
    rows = [tensor.new_zeros(len(replies), len(tensor)) for tensor in (theta, running)]
    owned = [torch.zeros_like(row, dtype=torch.bool) for row in rows]
    indices: dict[Architecture, tuple[Tensor, ...]] = {}
    for client, reply in enumerate(replies):
        genotype = reply.architecture
        assert genotype is not None
        if genotype not in indices:
            plan = derived_plan(supernet.shape, genotype)
            found = inherit_indices(supernet, plan, genotype)
            indices[genotype] = tuple(to_device(index, theta.device) for index in found)
        sent = (reply.tensors["theta"], reply.tensors["running"])
        for row, own, index, numbers in zip(rows, owned, indices[genotype], sent, strict=True):
            row[client, index], own[client, index] = numbers, True
    sizes = weights(replies)
    return (
        mean_over_owners(rows[0], owned[0], sizes, theta),
        mean_over_owners(rows[1], owned[1], sizes, running),
    )


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
