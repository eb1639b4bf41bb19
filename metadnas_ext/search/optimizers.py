"""Optimisers over the rows of a cohort's flat tensor.

Clients with more steps come first, so the clients still training are always the first k rows; the
others' parameters and moments stay as they are.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam


class RowOptimizer(Protocol):
    """Steps the first `active` rows of the tensor it was made for."""

    def step(self, grad: Tensor, active: int) -> None:
        """grad: (active, ...)."""


class RowAdam:
    """Adam (Kingma and Ba, 2015), torch's own fused kernel on each row.

    One call for all rows as a block would round the elements at a row's end, which do not fill a
    vector register, in another way than for that row alone.
    """

    def __init__(
        self,
        rows: Tensor,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        self._rows = rows
        self._mean = torch.zeros_like(rows)
        self._square = torch.zeros_like(rows)
        self._steps = torch.zeros(len(rows))
        self._lr, self._betas, self._decay, self._eps = lr, betas, weight_decay, eps

    def load(self, mean: Tensor, square: Tensor, steps: Tensor) -> None:
        """Goes on from these moments and step counts (G), updating them in place."""
        self._mean, self._square, self._steps = mean, square, steps

    def step(self, grad: Tensor, active: int) -> None:
        rows, mean, square, steps = (
            list(t[:active].unbind()) for t in (self._rows, self._mean, self._square, self._steps)
        )
        adam(
            rows,
            list(grad.unbind()),
            mean,
            square,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=self._betas[0],
            beta2=self._betas[1],
            lr=self._lr,
            weight_decay=self._decay,
            eps=self._eps,
            maximize=False,
        )


class RowSGD:
    """SGD with momentum; the rate falls on a cosine over each client's own number of steps."""

    def __init__(
        self, rows: Tensor, lr: float, momentum: float, weight_decay: float, steps: list[int]
    ) -> None:
        self._rows = rows
        self._velocity = torch.zeros_like(rows)
        self._lr, self._momentum, self._decay = lr, momentum, weight_decay
        self._total = steps
        self._done = 0

    def step(self, grad: Tensor, active: int) -> None:
        rows, velocity = self._rows[:active], self._velocity[:active]
        velocity.mul_(self._momentum).add_(grad).add_(rows, alpha=self._decay)
        rates = [
            self._lr * (1 + math.cos(math.pi * self._done / total)) / 2
            for total in self._total[:active]
        ]
        shape = (active, *[1] * (rows.dim() - 1))
        rows.sub_(velocity * torch.tensor(rates, dtype=rows.dtype).view(shape))
        self._done += 1


def clip_rows(grad: Tensor, limit: float) -> None:
    """Scales each row of grad (G, P) to a norm of at most `limit`, in place; 0: no limit."""
    if limit > 0:
        norms = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
        grad.mul_((limit / (norms + 1e-6)).clamp(max=1.0))
