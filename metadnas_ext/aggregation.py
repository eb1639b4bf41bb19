"""One call to aggregate clients' updates, whatever form they come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metadnas_ext.ops.weighted_mean import weighted_mean

METHODS = ("mean",)

StateDict = Mapping[str, Tensor]


def aggregate(
    updates: Tensor | Sequence[Tensor] | Sequence[StateDict],
    weights: Tensor | Sequence[float] | None = None,
    how: str = "mean",
) -> Tensor | dict[str, Tensor]:
    """Aggregates G clients' updates.

    Args:
        updates: a stacked tensor (G, ...), a list of G tensors of one shape, or a list of G state
            dicts with the same keys. Integer tensors (counters) are averaged in float64 and rounded
            back.
        weights: G numbers of at least 0, usually sample counts. None: equal weights.
        how: "mean", the weighted mean.

    Returns:
        A tensor (...), or a state dict.

    Raises:
        ValueError: on an unknown `how`, no updates, weights of another length, or state dicts whose
            keys differ (naming them).
    """
    if how not in METHODS:
        raise ValueError(f"how={how!r} is unknown; known: {', '.join(METHODS)}")
    if len(updates) == 0:
        raise ValueError("updates is empty, expected at least one client")
    if isinstance(updates, Tensor):
        return _mean(updates, weights)
    if all(isinstance(update, Tensor) for update in updates):
        return _mean(torch.stack(list(updates)), weights)  # type: ignore[arg-type]
    return _mean_of_dicts(updates, weights)  # type: ignore[arg-type]


def _mean(stacked: Tensor, weights: Tensor | Sequence[float] | None) -> Tensor:
    clients = stacked.shape[0]
    dtype = stacked.dtype if stacked.dtype in (torch.float32, torch.float64) else torch.float64
    if weights is None:
        share = torch.ones(clients, dtype=dtype)
    else:
        share = torch.as_tensor(weights, dtype=dtype)
    if share.shape != (clients,):
        raise ValueError(f"weights has shape {tuple(share.shape)}, expected ({clients},)")
    mean = weighted_mean(stacked.to(dtype), share)
    if not stacked.dtype.is_floating_point:
        mean = mean.round()
    return mean.to(stacked.dtype)


def _mean_of_dicts(
    updates: Sequence[StateDict], weights: Tensor | Sequence[float] | None
) -> dict[str, Tensor]:
    keys = updates[0].keys()
    for index, update in enumerate(updates):
        if update.keys() != keys:
            differ = ", ".join(sorted(set(update.keys()) ^ set(keys)))
            raise ValueError(f"updates[{index}] and updates[0] differ in the keys {differ}")
    return {key: _mean(torch.stack([u[key] for u in updates]), weights) for key in keys}
