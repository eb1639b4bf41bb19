"""Optimisers over the rows of a cohort's flat tensor.

Clients with more steps come first, so the clients still training are always the first k rows; the
others' parameters and moments stay as they are. A client's result is that of training alone.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from metadnas_ext.ops import adam_rows_, sgd_rows_


class RowOptimizer(Protocol):
    """Steps the first `active` rows of the tensor it was made for."""

    def step(self, grad: Tensor, active: int) -> None:
        """grad: (active, ...)."""

    def unrolled(self, grad: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Where the virtual step of DARTS takes `rows` from gradients (k, ...), and its rates (k).

        w' = w - ξ (μ velocity + grad + weight decay * w), ξ and μ as of the next step; without the
        clipping and, of Adam, with plain gradient descent.
        """


class RowAdam:
    """Adam (Kingma and Ba, 2015); `clip` limits the norm of each row's gradient, 0: no limit."""

    def __init__(
        self,
        rows: Tensor,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        clip: float = 0.0,
    ) -> None:
        self._rows = rows
        self._mean = torch.zeros_like(rows)
        self._square = torch.zeros_like(rows)
        self._steps = torch.zeros(len(rows))
        self._lr, self._betas, self._decay, self._eps = lr, betas, weight_decay, eps
        self._clip = clip

    def load(self, mean: Tensor, square: Tensor, steps: Tensor) -> None:
        """Goes on from these moments and step counts (G), updating them in place."""
        self._mean, self._square, self._steps = mean, square, steps

    def step(self, grad: Tensor, active: int, first: int = 0) -> None:
        """Of rows [first, active), grad (active - first, ...)."""
        adam_rows_(
            self._rows[first:],
            grad[: active - first],
            self._mean[first:],
            self._square[first:],
            self._steps[first:],
            lr=self._lr,
            betas=self._betas,
            weight_decay=self._decay,
            eps=self._eps,
            clip=self._clip,
        )

    def unrolled(self, grad: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        w = self._rows[rows]
        return w - self._lr * (grad + self._decay * w), w.new_full((len(w),), self._lr)


class RowSGD:
    """SGD with momentum; the rate falls on a cosine over each client's own number of steps."""

    def __init__(
        self,
        rows: Tensor,
        lr: float,
        momentum: float,
        weight_decay: float,
        steps: list[int],
        clip: float = 0.0,
    ) -> None:
        self._rows = rows
        self._velocity = torch.zeros_like(rows)
        self._lr, self._momentum, self._decay, self._clip = lr, momentum, weight_decay, clip
        self._total = steps
        self._done = 0

    def step(self, grad: Tensor, active: int) -> None:
        sgd_rows_(
            self._rows,
            grad[:active],
            self._velocity,
            self._rates(slice(0, active)),
            momentum=self._momentum,
            weight_decay=self._decay,
            clip=self._clip,
        )
        self._done += 1

    def unrolled(self, grad: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        w = self._rows[rows]
        step = self._momentum * self._velocity[rows] + grad + self._decay * w
        rates = w.new_tensor(self._rates(rows))
        return w - rates[:, None] * step, rates

    def _rates(self, rows: slice) -> list[float]:
        """Of the next step."""
        return [
            self._lr * (1 + math.cos(math.pi * self._done / total)) / 2
            for total in self._total[rows]
        ]
