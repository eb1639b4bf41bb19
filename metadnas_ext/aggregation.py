"""One call to aggregate clients' updates, whatever form they come in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from metadnas_ext import comparison, ops

METHODS = (
    "mean",
    "median",
    "trimmed_mean",
    "krum",
    "multi_krum",
    "geometric_median",
    "similarity",
)
WEIGHTED = ("mean", "geometric_median", "similarity")
"""The methods that take weights."""

StateDict = Mapping[str, Tensor]
_Combine = Callable[[Tensor], Tensor]  # (G, ...) float32 or float64 -> (...), or (G, ...)
_ALONE = ""  # the entry of updates that are tensors


def aggregate(
    updates: Tensor | Sequence[Tensor] | Sequence[StateDict],
    weights: Tensor | Sequence[float] | None = None,
    how: str = "mean",
    *,
    trim: float = 0.1,
    byzantine: int | None = None,
    select: int | None = None,
    smoothing: float = 1e-6,
    iterations: int = 1000,
    tolerance: float = 1e-8,
    temperature: float = 0.2,
    center: bool | Collection[str] = False,
) -> Tensor | dict[str, Tensor] | list[dict[str, Tensor]]:
    """Aggregates G clients' updates; docs/aggregation.md has the formulas and costs.

    "mean", "median" and "trimmed_mean" take each number by itself. "krum", "multi_krum",
    "geometric_median" and "similarity" compare whole clients, over all floating-point entries of a
    state dict together, and leave out clients with a NaN or infinity in one.

    Args:
        updates: a stacked tensor (G, ...), a list of G tensors of one shape, or a list of G state
            dicts with the same keys. float16 and bfloat16 are computed in float32. Integers
            (counters) are computed in float64 and rounded back.
        weights: G numbers of at least 0, usually sample counts; None: equal weights. For the
            methods in `WEIGHTED`. A client of weight 0 cannot reach the result. Best on the CPU,
            where they are checked, also for updates elsewhere.
        how: "mean", the weighted mean, the only method that gradients flow through; "median", the
            mean of the two middle values for an even G; "trimmed_mean", the mean without the
            extreme values; "krum", the client nearest to its neighbours; "multi_krum", the mean of
            several such; "geometric_median", the point nearest to all clients; "similarity", for
            each client its own mixture of the clients like it.
        trim: trimmed mean: share of the clients cut off at each end, at least 0, less than 0.5.
        byzantine: Krum: how many clients f may be arbitrary, 2 f + 3 <= G. None: the most that the
            number of finite clients allows.
        select: multi-Krum: how many clients are averaged, 1 to G; fewer where fewer are finite.
            None: all but f.
        smoothing: geometric median: distances count as at least this, more than 0.
        iterations: geometric median: at most this many, at least 1.
        tolerance: geometric median: at least 0; ends when the point moves by less than this share
            of the harmonic mean of the distances.
        temperature: similarity: more than 0; the smaller, the more a client keeps to its like.
        center: subtract the mean over the last axis first: architecture parameters mean the same
            with any constant added to an edge. True for tensors; for state dicts the keys it
            concerns.

    Returns:
        A tensor (...) or a state dict. For "similarity" one for each client: a tensor (G, ...) or a
        list of G state dicts; a client that was left out receives the others' weighted mean.

    Raises:
        ValueError: on an unknown `how`, an argument out of its range, weights that `how` does not
            take, no updates, updates that differ in keys, shapes or dtypes (naming them), or no
            finite client to compare.
    """
    if how not in METHODS:
        raise ValueError(f"how={how!r} is unknown; known: {', '.join(METHODS)}")
    if weights is not None and how not in WEIGHTED:
        raise ValueError(f"weights is given, but how={how!r} takes none: {', '.join(WEIGHTED)} do")
    if not isinstance(updates, (Tensor, Sequence)):
        raise ValueError(
            f"updates is a {type(updates).__name__}, expected a tensor (clients, ...), a list of "
            f"tensors or a list of state dicts"
        )
    if len(updates) == 0:
        raise ValueError("updates is empty, expected at least one client")
    clients = len(updates)
    share = _checked_weights(weights, clients)
    entries = _centered(_stacked(updates), center)
    combine: _Combine
    if how == "mean":
        combine = partial(_weighted_mean, weights=share)
    else:
        entries = {key: x.detach() for key, x in entries.items()}
        if how == "median":
            combine = ops.median
        elif how == "trimmed_mean":
            combine = partial(ops.trimmed_mean, trim=trim)
        elif how == "similarity":
            mixture = comparison.similarity(_compared(entries), share, temperature)
            combine = partial(_mixtures, weights=mixture)
        else:
            compared = _compared(entries)
            if how == "krum":
                found = comparison.multi_krum(compared, byzantine, 1)
            elif how == "multi_krum":
                found = comparison.multi_krum(compared, byzantine, select)
            else:
                found = comparison.geometric_median(
                    compared, share, smoothing, iterations, tolerance
                )
            combine = partial(_weighted_mean, weights=found)
    result = {key: _in_own_dtype(combine, x) for key, x in entries.items()}
    if _ALONE in result:
        return result[_ALONE]
    if how == "similarity":
        return [{key: x[g] for key, x in result.items()} for g in range(clients)]
    return result


def _checked_weights(weights: Tensor | Sequence[float] | None, clients: int) -> Tensor:
    """(G) float64 on the CPU."""
    if weights is None:
        return torch.ones(clients, dtype=torch.float64)
    share = torch.as_tensor(weights, dtype=torch.float64).cpu()
    if share.shape != (clients,):
        raise ValueError(f"weights has shape {tuple(share.shape)}, expected ({clients},)")
    bad = ~((share >= 0) & (share < torch.inf))
    if bool(bad.any()):
        index = int(bad.nonzero()[0])
        raise ValueError(
            f"weights[{index}] is {float(share[index])}, expected a finite number of at least 0"
        )
    if not share.detach().sum() > 0:
        raise ValueError("weights sum to 0, expected more than 0")
    return share


def _stacked(updates: Tensor | Sequence[Tensor] | Sequence[StateDict]) -> dict[str, Tensor]:
    """Entry -> (G, ...); tensors are the one entry `_ALONE`."""
    if isinstance(updates, Tensor):
        return {_ALONE: updates}
    dicts: list[StateDict] = []
    for index, update in enumerate(updates):
        if not isinstance(update, (Tensor, Mapping)):
            kind = type(update).__name__
            raise ValueError(f"updates[{index}] is a {kind}, expected a tensor or a state dict")
        if isinstance(update, Tensor) != isinstance(updates[0], Tensor):
            raise ValueError(f"updates[{index}] and updates[0] are not both tensors or state dicts")
        dicts.append({_ALONE: update} if isinstance(update, Tensor) else cast(StateDict, update))
    keys = dicts[0].keys()
    for index, update in enumerate(dicts):
        if update.keys() != keys:
            differ = ", ".join(sorted(set(update.keys()) ^ set(keys)))
            raise ValueError(f"updates[{index}] and updates[0] differ in the keys {differ}")
    return {key: _stack(key, [update[key] for update in dicts]) for key in keys}


def _stack(key: str, tensors: list[Tensor]) -> Tensor:
    for index, tensor in enumerate(tensors):
        name = f"updates[{index}]" + (f"[{key!r}]" if key != _ALONE else "")
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} is a {type(tensor).__name__}, expected a tensor")
        shape, dtype = tensors[0].shape, tensors[0].dtype
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
        if tensor.dtype != dtype:
            raise ValueError(f"{name} is {tensor.dtype}, expected {dtype} as updates[0]")
    return torch.stack(tensors)


def _centered(entries: dict[str, Tensor], center: bool | Collection[str]) -> dict[str, Tensor]:
    if center is False:
        return entries
    if isinstance(center, (bool, str)) != (_ALONE in entries) or isinstance(center, str):
        raise ValueError(
            f"center is {center!r}, expected True or False for tensors, a collection of keys for "
            "state dicts"
        )
    chosen = {_ALONE} if isinstance(center, bool) else set(center)
    if unknown := chosen - entries.keys():
        raise ValueError(f"center names {', '.join(sorted(unknown))}, which updates do not have")
    for key in chosen:
        if entries[key].dim() < 2 or not entries[key].is_floating_point():
            raise ValueError(
                f"center: {key or 'updates'} has shape {tuple(entries[key].shape[1:])} and dtype "
                f"{entries[key].dtype} a client, expected floating point with at least one axis"
            )
    return {key: x - x.mean(-1, keepdim=True) if key in chosen else x for key, x in entries.items()}


def _wide(x: Tensor) -> Tensor:
    """x in the dtype it is computed in."""
    if x.dtype in (torch.float32, torch.float64):
        return x
    return x.to(torch.float32 if x.is_floating_point() else torch.float64)


def _in_own_dtype(combine: _Combine, x: Tensor) -> Tensor:
    result = combine(_wide(x))
    return (result if x.is_floating_point() else result.round()).to(x.dtype)


def _weighted_mean(x: Tensor, weights: Tensor) -> Tensor:
    return ops.weighted_mean(x, weights.to(x))


def _mixtures(x: Tensor, weights: Tensor) -> Tensor:
    return ops.mixtures(x, weights.to(x))


def _compared(entries: dict[str, Tensor]) -> list[Tensor]:
    """The entries that clients are compared by: not counters."""
    if _ALONE in entries:
        return [_wide(entries[_ALONE])]
    found = [_wide(x) for x in entries.values() if x.is_floating_point()]
    if not found:
        raise ValueError("updates have no floating-point entry to compare clients by")
    return found
