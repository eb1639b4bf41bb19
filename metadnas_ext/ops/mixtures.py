"""Several weighted means of the same clients."""

from __future__ import annotations

import torch
from torch import Tensor

from metadnas_ext._native import REFERENCE
from metadnas_ext.ops import reference_aggregate


def mixtures(x: Tensor, weights: Tensor) -> Tensor:
    """A weighted mean of the clients for each row of weights.

    Args:
        x: (G, ...) float32 or float64.
        weights: (M, G) of x's dtype, at least 0; every row has a positive sum and is scaled to 1.

    Returns:
        (M, ...), added up in client order in float64. A client of weight 0 in a row cannot reach
        that row's result. It carries no gradient.

    Raises:
        RuntimeError: on wrong shapes, dtypes, or weights that are negative or not finite.
    """
    x, weights = x.detach(), weights.detach()
    if REFERENCE:
        return reference_aggregate.mixtures(x, weights)
    result: Tensor = torch.ops.metadnas_ext.mixtures(x, weights)
    return result


def _register() -> None:
    @torch.library.register_fake("metadnas_ext::mixtures")  # type: ignore[untyped-decorator]
    def _(x: Tensor, weights: Tensor) -> Tensor:
        return x.new_empty((weights.shape[0], *x.shape[1:]))


if not REFERENCE:
    _register()
