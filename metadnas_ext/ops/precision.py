"""Half precisions: activations in bfloat16 or float16, all that is in between in float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metadnas_ext._native import REFERENCE

HALF = (torch.bfloat16, torch.float16)

HALF_DEVICES = {"cuda"}
"""Where kernels read and write half precision themselves; elsewhere activations are converted."""


def half_dtype(x: Tensor) -> torch.dtype | None:
    """Half precision in which the results for activations x are asked for, or None.

    Autocast's, as for PyTorch's own convolutions, else x's own.
    """
    device = x.device.type
    # Meta tensors have no autocast. torch.amp.is_autocast_available is not compiled by torch 2.11.
    if device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        return dtype if dtype in HALF else None
    return x.dtype if x.dtype in HALF else None


def takes_half(x: Tensor) -> bool:
    """Whether kernels for activations x read and write half precision."""
    return not REFERENCE and x.device.type in HALF_DEVICES


def in_half(
    op: Callable[..., tuple[Tensor, Tensor]], half: torch.dtype, x: Tensor, *rest: Tensor | None
) -> tuple[Tensor, Tensor]:
    """op on x in `half` and the rest in float32, outside autocast, for kernels that take that."""
    with torch.autocast(x.device.type, enabled=False):
        return op(x.to(half), *(None if t is None else t.float() for t in rest))


def in_single(
    op: Callable[..., tuple[Tensor, Tensor]], half: torch.dtype, *tensors: Tensor | None
) -> tuple[Tensor, Tensor]:
    """op on the tensors in float32, outside autocast; its result in `half`, statistics as they are.

    Products and sums, batch-norm statistics, parameters and mixing weights keep float32's accuracy:
    only activations, and the gradients with respect to them, are rounded.
    """
    device = next(t for t in tensors if t is not None).device.type
    with torch.autocast(device, enabled=False):
        out, stats = op(*(None if t is None else t.float() for t in tensors))
        return out.to(half), stats
