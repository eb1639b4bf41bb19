"""Optimiser steps on the rows of a cohort's flat tensor, each in one pass and in place.

Not differentiable, and not for torch.compile: autograd learns of the change from the functions
here, not from the operators. A row's result is that of the row alone, to the bit, whatever the
number of threads: the arithmetic is element by element, and a norm is added up in a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from metadnas_ext._native import REFERENCE
from metadnas_ext.ops import reference_layers


def adam_rows_(
    rows: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    steps: Tensor,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    clip: float = 0.0,
) -> None:
    """A step of Adam (Kingma and Ba, 2015; torch.optim.Adam) on the first k rows.

    Args:
        rows: (G, ...) parameters, float32 or float64, contiguous; rows from k on stay as they are.
        grad: (k, ...) their gradients.
        mean, square: (G, ...) moments, contiguous; updated.
        steps: (G) float32, steps each row has taken; updated.
        lr: rate.
        betas: decay rates of the moments.
        weight_decay: L2 penalty, added to the gradient after clipping.
        eps: added to the root of the second moment.
        clip: scales a row's gradient to a norm of at most this, as
            torch.nn.utils.clip_grad_norm_; 0: no limit. `grad` itself is not changed.

    Raises:
        RuntimeError: on wrong shapes, dtypes, devices or strides, naming the argument.
    """
    step = reference_layers.adam_rows_ if REFERENCE else torch.ops.metadnas_ext.adam_rows_
    with torch.no_grad():
        step(rows, grad, mean, square, steps, lr, *betas, weight_decay, eps, clip)
    increment_version((rows, mean, square, steps))


def sgd_rows_(
    rows: Tensor,
    grad: Tensor,
    velocity: Tensor,
    rates: Sequence[float],
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    clip: float = 0.0,
) -> None:
    """A step of SGD with momentum (torch.optim.SGD) on the first k rows, each with its own rate.

    Args:
        rows: (G, ...) parameters, float32 or float64, contiguous; rows from k on stay as they are.
        grad: (k, ...) their gradients.
        velocity: (G, ...) momentum buffers, contiguous; updated. Zeros before the first step.
        rates: k of them.
        momentum, weight_decay, clip: as in `adam_rows_`.

    Raises:
        RuntimeError: on wrong shapes, dtypes, devices or strides, naming the argument.
    """
    step = reference_layers.sgd_rows_ if REFERENCE else torch.ops.metadnas_ext.sgd_rows_
    with torch.no_grad():
        step(rows, grad, velocity, list(rates), momentum, weight_decay, clip)
    increment_version((rows, velocity))


def _register() -> None:
    for name in ("adam_rows_", "sgd_rows_"):

        @torch.library.register_fake(f"metadnas_ext::{name}")  # type: ignore[untyped-decorator]
        def _(*args: Any) -> None:
            """Nothing is returned, and no shape changes."""


if not REFERENCE:
    _register()
