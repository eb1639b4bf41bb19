"""The server's step: how the clients' updates become the next shared state."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from metadnas_ext.aggregation import WEIGHTED, aggregate
from metadnas_ext.config import ServerConfig
from metadnas_ext.meta.base import MetaGradient
from metadnas_ext.search.cohort import Cohort
from metadnas_ext.search.optimizers import RowAdam


@dataclass
class ServerState:
    """The meta-learned state θ = (w, α): theta (P), running (R), alpha (types, E, O).

    moments: of the server's Adam, `alpha_mean` and so on, for what is meta-learned and no more.
    """

    theta: Tensor
    running: Tensor
    alpha: Tensor
    moments: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def start(
        cls, theta: Tensor, running: Tensor, alpha: Tensor, learned: Collection[str] = ("alpha",)
    ) -> ServerState:
        state = cls(theta, running, alpha)
        for name in learned:
            zeros = torch.zeros_like(vars(state)[name])
            moments = (zeros, zeros.clone(), torch.zeros((), device=zeros.device))
            state.moments |= zip(_keys(name), moments, strict=True)
        return state

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> ServerState:
        """The inverse of `tensors`."""
        own = ("theta", "running", "alpha")
        moments = {name: tensor for name, tensor in tensors.items() if name not in own}
        return cls(tensors["theta"], tensors["running"], tensors["alpha"], moments)

    def tensors(self) -> dict[str, Tensor]:
        own = {"theta": self.theta, "running": self.running, "alpha": self.alpha}
        return own | self.moments


class Update(NamedTuple):
    """What clients send: theta (G, P) and alpha (G, types, E, O), each the adapted one or its
    meta-gradient, and running (G, R)."""

    theta: Tensor
    running: Tensor
    alpha: Tensor

    @classmethod
    def of(cls, cohort: Cohort, grad: MetaGradient) -> Update:
        assert cohort.alpha is not None
        return cls(
            cohort.theta if grad.theta is None else grad.theta,
            cohort.running,
            cohort.alpha if grad.alpha is None else grad.alpha,
        )


def server_step(
    state: ServerState, update: Update, sizes: Tensor, config: ServerConfig, relative: bool = True
) -> None:
    """One round's update, in place: Adam on the aggregated meta-gradient of what is meta-learned,
    the aggregated value itself of the rest.

    sizes: float64 (G), numbers of training images, weigh the clients where the aggregator does.
    relative: as a relaxation's, whether a constant on an edge of α means nothing.
    """
    rates = {"theta": config.w_lr, "alpha": config.alpha_lr}
    for name, value in aggregated(update, sizes, config, relative).items():
        moments = [state.moments[key] for key in _keys(name) if key in state.moments]
        if moments:
            optimizer = RowAdam(vars(state)[name][None], rates[name])
            optimizer.load(*(moment[None] for moment in moments))
            optimizer.step(value[None], active=1)
        else:
            setattr(state, name, value)


def aggregated(
    update: Update, sizes: Tensor, config: ServerConfig, relative: bool
) -> dict[str, Tensor]:
    """The clients' updates as one, `config.aggregator` comparing clients by all they send."""
    how, clients = config.aggregator, len(sizes)
    options: dict[str, Any] = {}
    if how == "trimmed_mean":
        options["trim"] = config.trim
    if how in ("krum", "multi_krum") and config.byzantine is not None:
        # Of fewer clients than were asked for, fewer can be told apart.
        options["byzantine"] = min(config.byzantine, max(clients - 3, 0) // 2)
    if how == "multi_krum" and config.select is not None:
        options["select"] = min(config.select, clients)
    rows = [
        {name: tensor[client] for name, tensor in update._asdict().items()}
        for client in range(clients)
    ]
    combined = aggregate(
        rows,
        sizes if how in WEIGHTED else None,
        how,
        # Softmax ignores a constant added to an edge; order and distance do not.
        center=("alpha",) if relative and how != "mean" else (),
        **options,
    )
    return cast(dict[str, Tensor], combined)


def _keys(name: str) -> tuple[str, ...]:
    """Of the moments of the server's Adam on `name`."""
    return f"{name}_mean", f"{name}_square", f"{name}_steps"
