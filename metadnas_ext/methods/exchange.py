"""What passes between a server and its clients in a round, in one process or over a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metadnas_ext.nn import NetworkPlan
from metadnas_ext.search.cohort import Cohort
from metadnas_ext.search.training import Evaluation
from metadnas_ext.space import Architecture


@dataclass(frozen=True)
class Task:
    """What the server sends to the clients of round `index`: its state by name.

    A method's last task, of the index behind its last round, is what clients are personalised from.
    """

    index: int
    tensors: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Reply:
    """What one client sends back.

    Args:
        tensors: its own values of what the server sent, or their meta-gradients, by name.
        weight: number of training images.
        metrics: figures of its training by name.
        architecture: where clients train networks of their own, the one whose numbers these are.
    """

    client: int
    tensors: dict[str, Tensor]
    weight: float
    metrics: dict[str, float]
    architecture: Architecture | None = None


LARGEST = 1e18
"""Magnitude that no number of a reply may pass: sums of squares of float32 stay finite."""

METRICS = {
    "train_loss": (-LARGEST, LARGEST),
    "val_loss": (-LARGEST, LARGEST),
    "val_accuracy": (0.0, 1.0),
    "val_images": (1.0, LARGEST),
}
"""What every reply tells of its client's training, and the values it may have."""


@dataclass(frozen=True, eq=False)
class Form:
    """What a reply must look like, whoever has sent it.

    tensors: least values of each, in its shape and dtype, -inf where any will do; metrics: least
    and largest value of each.
    """

    tensors: dict[str, Tensor]
    metrics: dict[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Part:
    """A group's part of a round: what its clients send, and what each of them keeps.

    kept: rows (G, width) by the names of a method's `client_rows`, in the order of `clients`.
    """

    clients: list[int]
    replies: list[Reply]
    kept: dict[str, Tensor]


def replies_of(
    cohort: Cohort, tensors: Mapping[str, Tensor], metrics: Mapping[str, Tensor]
) -> list[Reply]:
    """One reply a client from tensors (G, ...) and metrics (G)."""
    values = {name: column.tolist() for name, column in metrics.items()}
    return [
        Reply(
            split.client,
            {name: tensor[row] for name, tensor in tensors.items()},
            float(len(split.train)),
            {name: column[row] for name, column in values.items()},
        )
        for row, split in enumerate(cohort.splits)
    ]


def training_metrics(losses: Tensor, val: Evaluation) -> dict[str, Tensor]:
    """Those of METRICS, (G) each."""
    return dict(zip(METRICS, (losses, *val), strict=True))


def least_values(plan: NetworkPlan, dtype: torch.dtype) -> dict[str, Tensor]:
    """Of a network's theta (P) and running (R), on the CPU: variances are not negative."""
    theta = torch.full((plan.parameters.size,), -math.inf, dtype=dtype)
    running = torch.full((plan.running.size,), -math.inf, dtype=dtype)
    for name, slot in plan.running.slots.items():
        if name.endswith("running_var"):
            running[slot.offset : slot.end] = 0
    return {"theta": theta, "running": running}


def stacked(replies: Sequence[Reply], name: str) -> Tensor:
    """(G, ...)"""
    return torch.stack([reply.tensors[name] for reply in replies])


def weights(replies: Sequence[Reply]) -> Tensor:
    """float64 (G) on the CPU."""
    return torch.tensor([reply.weight for reply in replies], dtype=torch.float64)


def metric(replies: Sequence[Reply], name: str) -> Tensor:
    """float64 (G) on the CPU."""
    return torch.tensor([reply.metrics[name] for reply in replies], dtype=torch.float64)


def mean_over_clients(replies: Sequence[Reply], name: str, by: Tensor) -> float:
    """Mean of a metric, clients weighed by `by` (G)."""
    return float((metric(replies, name) * by).sum() / by.sum())
