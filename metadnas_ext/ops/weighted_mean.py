"""Weighted mean over the client axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metadnas_ext._native import REFERENCE
from metadnas_ext.ops import reference


def weighted_mean(x: Tensor, weights: Tensor) -> Tensor:
    """Mean of stacked client tensors, as FedAvg's aggregation (McMahan et al., AISTATS 2017).

    Args:
        x: (G, ...) float32 or float64.
        weights: (G) of x's dtype, at least 0 with a positive sum; scaled to sum to 1.

    Returns:
        (...): sum of weights * x over the sum of weights, added up in client order in float64. A
        client of weight 0 cannot reach the result, whatever its values.

    Raises:
        RuntimeError: on wrong shapes, dtypes, or weights that are negative or not finite.
    """
    if REFERENCE:
        return reference.weighted_mean(x, weights)
    result: Tensor = torch.ops.metadnas_ext.weighted_mean(x, weights)
    return result


def _register() -> None:
    @torch.library.register_fake("metadnas_ext::weighted_mean")  # type: ignore[untyped-decorator]
    def _(x: Tensor, weights: Tensor) -> Tensor:
        return x.new_empty(x.shape[1:])

    torch.library.register_autograd("metadnas_ext::weighted_mean", _backward, setup_context=_save)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    # Ordinary differentiable operators, so that double backward needs nothing more.
    x, weights = ctx.saved_tensors
    total = weights.sum()
    mean = weighted_mean(x, weights)
    wide = (weights / total).view(-1, *[1] * grad.dim())
    grad_weights = ((x - mean) * grad).reshape(x.shape[0], -1).sum(1) / total
    return wide * grad, grad_weights


if not REFERENCE:
    _register()
