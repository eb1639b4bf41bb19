"""Scalar products between clients, from which every distance-based rule follows."""

from __future__ import annotations

import torch
from torch import Tensor

from metadnas_ext._native import REFERENCE
from metadnas_ext.ops import reference_aggregate


def gram(x: Tensor, origin: Tensor) -> Tensor:
    """Scalar products of the clients' deviations from an origin.

    Args:
        x: (G, ...) float32 or float64.
        origin: (...) of x's dtype. Distances taken from the result lose the digits that the
            deviations have in common, so it should lie among the clients: their median.

    Returns:
        (G, G) float64: (x_i - origin) . (x_j - origin), subtracted, multiplied and added up in
        float64. It carries no gradient.

    Raises:
        RuntimeError: on wrong shapes or dtypes.
    """
    x, origin = x.detach(), origin.detach()
    if REFERENCE:
        return reference_aggregate.gram(x, origin)
    result: Tensor = torch.ops.metadnas_ext.gram(x, origin)
    return result


def _register() -> None:
    @torch.library.register_fake("metadnas_ext::gram")  # type: ignore[untyped-decorator]
    def _(x: Tensor, origin: Tensor) -> Tensor:
        return x.new_empty((x.shape[0], x.shape[0]), dtype=torch.float64)


if not REFERENCE:
    _register()
