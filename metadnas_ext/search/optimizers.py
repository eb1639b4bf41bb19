"""Optimisers over the rows of a cohort's flat tensor, and their adjoints.

Clients with more steps come first, so the clients still training are always the first k rows; the
others' parameters and moments stay as they are. A client's result is that of training alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from metadnas_ext.ops import adam_rows_, sgd_rows_
from metadnas_ext.placement import to_device

CLIP_EPS = 1e-6  # added to the norm, as torch.nn.utils.clip_grad_norm_ does


class RowOptimizer(Protocol):
    """Steps the first `active` rows of the tensor it was made for."""

    def step(self, grad: Tensor, active: int) -> None:
        """grad: (active, ...)."""

    def unrolled(self, grad: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Where the virtual step of DARTS takes `rows` from gradients (k, ...), and its rates (k).

        w' = w - ξ (μ velocity + grad + weight decay * w), ξ and μ as of the next step; without the
        clipping and, of Adam, with plain gradient descent.
        """

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that a step changes, each (G, ...): the rows, then their moments."""

    def apply(self, tensors: Sequence[Tensor], grad: Tensor, clients: slice, done: int) -> None:
        """The step number `done`, from 0, of some of the clients on a copy of `tensors`, in place.

        grad: of just these clients.
        """

    def adjoint(
        self,
        tensors: Sequence[Tensor],
        adjoints: Sequence[Tensor],
        grad: Tensor,
        clients: slice,
        done: int,
    ) -> Tensor:
        """`apply` differentiated in reverse, in the precision of `grad`: the adjoint of `grad`.

        tensors: as they were before the step. adjoints: of the rows and the moments after it, each
        (G, ...); replaced by those before it, at a fixed gradient.
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
        self._steps = torch.zeros(len(rows), device=rows.device)
        self._lr, self._betas, self._decay, self._eps = lr, betas, weight_decay, eps
        self._clip = clip

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self._rows, self._mean, self._square, self._steps

    def load(self, mean: Tensor, square: Tensor, steps: Tensor) -> None:
        """Goes on from these moments and step counts (G), updating them in place."""
        self._mean, self._square, self._steps = mean, square, steps

    def step(self, grad: Tensor, active: int, first: int = 0) -> None:
        """Of rows [first, active), grad (active - first, ...)."""
        # The rows count their steps themselves.
        self.apply(self.tensors, grad[: active - first], slice(first, active), done=0)

    def unrolled(self, grad: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        w = self._rows[rows]
        return w - self._lr * (grad + self._decay * w), w.new_full((len(w),), self._lr)

    def apply(self, tensors: Sequence[Tensor], grad: Tensor, clients: slice, done: int) -> None:
        rows, *moments = (tensor[clients] for tensor in tensors)
        adam_rows_(
            rows,
            grad,
            *moments,
            lr=self._lr,
            betas=self._betas,
            weight_decay=self._decay,
            eps=self._eps,
            clip=self._clip,
        )

    def adjoint(
        self,
        tensors: Sequence[Tensor],
        adjoints: Sequence[Tensor],
        grad: Tensor,
        clients: slice,
        done: int,
    ) -> Tensor:
        rows, mean, square, steps = (tensor[clients].to(grad.dtype) for tensor in tensors)
        to_rows, to_mean, to_square, _ = (adjoint[clients] for adjoint in adjoints)
        beta1, beta2 = self._betas
        used = _clipped(grad, self._clip) + self._decay * rows
        mean = mean.lerp(used, 1 - beta1)
        square = beta2 * square + (1 - beta2) * used.square()
        counts = (steps + 1).double()
        root = (square / per_client(1 - beta2**counts, rows)).sqrt()
        size = root + self._eps
        pull = per_client(self._lr / (1 - beta1**counts), rows) * to_rows / size
        to_mean.sub_(pull)
        # A second moment of 0 has seen no gradient but 0: there the step is linear in the mean.
        bend = pull * mean / size * root / (2 * square)  # d root / d square = root / (2 square)
        to_square.add_(torch.where(square > 0, bend, 0.0))
        to_used = (1 - beta1) * to_mean + 2 * (1 - beta2) * used * to_square
        to_mean.mul_(beta1)
        to_square.mul_(beta2)
        to_rows.add_(to_used, alpha=self._decay)
        return _clip_adjoint(grad, to_used, self._clip)


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

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self._rows, self._velocity

    def step(self, grad: Tensor, active: int) -> None:
        self.apply(self.tensors, grad[:active], slice(0, active), self._done)
        self._done += 1

    def unrolled(self, grad: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        w = self._rows[rows]
        step = self._momentum * self._velocity[rows] + grad + self._decay * w
        rates = _as_tensor(self._rates(rows, self._done), w)
        return w - rates[:, None] * step, rates

    def apply(self, tensors: Sequence[Tensor], grad: Tensor, clients: slice, done: int) -> None:
        rows, velocity = (tensor[clients] for tensor in tensors)
        sgd_rows_(
            rows,
            grad,
            velocity,
            self._rates(clients, done),
            momentum=self._momentum,
            weight_decay=self._decay,
            clip=self._clip,
        )

    def adjoint(
        self,
        tensors: Sequence[Tensor],
        adjoints: Sequence[Tensor],
        grad: Tensor,
        clients: slice,
        done: int,
    ) -> Tensor:
        to_rows, to_velocity = (adjoint[clients] for adjoint in adjoints)
        rates = _as_tensor(self._rates(clients, done), to_rows)
        to_velocity.sub_(per_client(rates, to_rows) * to_rows)
        to_used = to_velocity.clone()
        to_velocity.mul_(self._momentum)
        to_rows.add_(to_used, alpha=self._decay)
        return _clip_adjoint(grad, to_used, self._clip)

    def _rates(self, clients: slice, done: int) -> list[float]:
        return [
            self._lr * (1 + math.cos(math.pi * done / total)) / 2 for total in self._total[clients]
        ]


def _as_tensor(values: Sequence[float], like: Tensor) -> Tensor:
    return to_device(torch.tensor(values, dtype=like.dtype), like.device)


def row_norms(x: Tensor, least: float = 0.0) -> Tensor:
    """Euclidean norm of each row, and at least `least`: (k, ...) -> float64 (k).

    Row by row: a reduction over a block may add up in an order that depends on the cohort.
    """
    norms = [torch.linalg.vector_norm(row, dtype=torch.float64) for row in x]
    return torch.stack(norms).clamp(min=least)


def per_client(values: Tensor, like: Tensor) -> Tensor:
    """(k) -> (k, 1, ..., 1) in the dimensions and type of `like` (k, ...)."""
    return values.to(like.dtype).view(-1, *(1,) * (like.dim() - 1))


def _clipped(grad: Tensor, limit: float) -> Tensor:
    return grad if limit <= 0 else grad * per_client(_clip_scale(row_norms(grad), limit), grad)


def _clip_scale(norms: Tensor, limit: float) -> Tensor:
    return (limit / (norms + CLIP_EPS)).clamp(max=1)


def _clip_adjoint(grad: Tensor, adjoint: Tensor, limit: float) -> Tensor:
    """From the adjoint of the clipped gradient to that of the gradient, (k, ...).

    Where s = limit / (n + eps) < 1 scales a gradient g of norm n: s u - s <g, u> / (n (n + eps)) g.
    """
    if limit <= 0:
        return adjoint
    norms = row_norms(grad)
    scale = _clip_scale(norms, limit)
    pairs = zip(grad.double(), adjoint.double(), strict=True)
    products = torch.stack([torch.dot(g.flatten(), u.flatten()) for g, u in pairs])
    along = torch.where(scale < 1, scale * products / (norms * (norms + CLIP_EPS)), 0.0)
    return per_client(scale, grad) * adjoint - per_client(along, grad) * grad
