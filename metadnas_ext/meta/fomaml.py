"""The server's step: how the clients' results become the next shared state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metadnas_ext.ops import weighted_mean
from metadnas_ext.search.optimizers import RowAdam


@dataclass
class ServerState:
    """The meta-learned state θ = (w, α): theta (P), running (R), alpha (2, E, O).

    alpha_mean, alpha_square and alpha_steps are the server optimiser's moments.
    """

    theta: Tensor
    running: Tensor
    alpha: Tensor
    alpha_mean: Tensor
    alpha_square: Tensor
    alpha_steps: Tensor

    @classmethod
    def start(cls, theta: Tensor, running: Tensor, alpha: Tensor) -> ServerState:
        zeros = torch.zeros_like(alpha)
        return cls(theta, running, alpha, zeros, zeros.clone(), torch.zeros(()))

    def tensors(self) -> dict[str, Tensor]:
        return dict(vars(self))


def server_step(
    state: ServerState,
    theta: Tensor,
    running: Tensor,
    alpha_grad: Tensor,
    sizes: Tensor,
    lr: float,
) -> None:
    """One round's update, in place: w and statistics averaged, Adam on α's mean meta-gradient.

    theta (G, P), running (G, R), alpha_grad (G, 2, E, O) of the round's clients; sizes float64 (G),
    their numbers of training images, weigh the means (FedAvg; the paper's Adam, lr 1e-3).
    """
    state.theta = weighted_mean(theta, sizes.to(theta.dtype))
    state.running = weighted_mean(running, sizes.to(running.dtype))
    grad = weighted_mean(alpha_grad, sizes.to(alpha_grad.dtype))
    optimizer = RowAdam(state.alpha[None], lr)
    optimizer.load(state.alpha_mean[None], state.alpha_square[None], state.alpha_steps[None])
    optimizer.step(grad[None], active=1)
