"""Sums of weighted candidates by the kernels' operators: an edge, or a whole cell, in one call."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from metadnas_ext import ops
from metadnas_ext.fuse import norms
from metadnas_ext.fuse.norms import NormMode
from metadnas_ext.fuse.scope import Call
from metadnas_ext.nn.layout import FlatLayout
from metadnas_ext.nn.named import flatten
from metadnas_ext.ops.precision import HALF

if TYPE_CHECKING:
    from metadnas_ext.fuse.deferred import Deferred, Weight


def evaluate(deferred: Deferred) -> Tensor:
    """One mixed operation for all calls on one tensor, then the sum."""
    parts = [_mixed(group) for group in _groups(_merged(deferred))]
    parts += deferred.addends
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def channels_last(x: Tensor) -> Tensor:
    """x (N, C, H, W) -> (1, N, H, W, C); a copy only if its memory is not in that order."""
    return x.permute(0, 2, 3, 1).contiguous()[None]


def channels_first(out: Tensor) -> Tensor:
    """out (1, N, H, W, C) -> a view (N, C, H, W)."""
    return out.squeeze(0).permute(0, 3, 1, 2)  # out[0] would copy the gradient


def packed(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    """The tensors' elements, one behind another: (1, P)."""
    if not tensors:
        return like.new_zeros(1, 0)
    return flatten(_layout(tuple(t.shape for t in tensors)), None, tensors)[None]


def _merged(deferred: Deferred) -> dict[Call, Weight]:
    """A call that occurs twice has the sum of its weights."""
    merged: dict[Call, Weight] = {}
    for call, weight in deferred.terms:
        merged[call] = merged[call] + weight if call in merged else weight
    return merged


def _groups(terms: dict[Call, Weight]) -> list[dict[Call, Weight]]:
    """Calls that one mixed operation can make: one input, stride and mode, each candidate once."""
    groups: list[dict[Call, Weight]] = []
    # Those without batch norms come last: they fit into any group.
    for call in sorted(terms, key=lambda call: call.mode is None):
        for group in groups:
            if _fits(call, group):
                group[call] = terms[call]
                break
        else:
            groups.append({call: terms[call]})
    return groups


def _fits(call: Call, group: dict[Call, Weight]) -> bool:
    first = next(iter(group))
    own = call.forward.found
    return (
        call.x is first.x
        and own.stride == first.forward.found.stride
        and call.mode in (None, first.mode)
        and all(own.primitive != other.forward.found.primitive for other in group)
    )


def _mixed(group: dict[Call, Weight]) -> Tensor:
    calls = list(group)
    x = channels_last(_input(calls))  # (1, N, H, W, C)
    mode = next((call.mode for call in calls if call.mode is not None), None)
    own_norms = [norm for call in calls for norm in call.norms]
    out, stats = ops.mixed_op(
        x,
        _stacked(list(group.values()), x)[None],
        packed([t for call in calls for t in call.forward.tensors()], x),
        [call.forward.found.primitive for call in calls],
        stride=calls[0].forward.found.stride,
        affine=mode is not None and mode.affine,
        running=_running(own_norms, mode),
        eps=1e-5 if mode is None else mode.eps,
    )
    _take_steps(calls, stats, out[0, ..., 0].numel())
    return channels_first(out)


def evaluate_cell(nodes: list[Deferred]) -> Tensor | None:
    """All nodes, concatenated, by one `ops.cell`; None if they do not make up a cell of its kind.

    That takes two inputs of one shape, nodes that are sums of the same number of candidates an
    edge, and one mode of all batch norms.
    """
    edges = _edges(nodes)
    if edges is None:
        return None
    inputs, calls_of = edges
    calls = [call for edge in calls_of.values() for call in edge]
    mode = next((call.mode for call in calls if call.mode is not None), None)
    strides = {edge: {c.forward.found.stride for c in calls} for edge, calls in calls_of.items()}
    step = strides[next(iter(strides))]
    wanted = all(own == (step if source < 2 else {1}) for (_, source), own in strides.items())
    alike = len({len(edge) for edge in calls_of.values()}) == 1
    if len(step) != 1 or not wanted or not alike or any(c.mode not in (None, mode) for c in calls):
        return None
    s0, s1 = (channels_last(x) for x in inputs)
    if s0.shape != s1.shape:
        return None
    own_norms = [norm for call in calls for norm in call.norms]
    weights = _stacked([w for edge in calls_of.values() for w in edge.values()], s0)
    out, stats = ops.cell(
        *(s0, s1),
        weights.view(1, len(calls_of), -1),
        packed([t for call in calls for t in call.forward.tensors()], s0),
        [source for _, source in calls_of],
        [target for target, _ in calls_of],
        [[call.forward.found.primitive for call in edge] for edge in calls_of.values()],
        reduction=step == {2},
        affine=mode is not None and mode.affine,
        running=_running(own_norms, mode),
        eps=1e-5 if mode is None else mode.eps,
    )
    _take_steps(calls, stats, out[0, ..., 0].numel())
    result = channels_first(out)  # (N, nodes * C, H, W)
    for node, part in zip(nodes, result.chunk(len(nodes), 1), strict=True):
        node.settle_as(part)
        node.scope.joined = True
    return result


def _edges(
    nodes: list[Deferred],
) -> tuple[list[Tensor], dict[tuple[int, int], dict[Call, Weight]]] | None:
    """The two inputs, and the calls of each edge (target, source); None if it is not such a graph.

    Sources are numbered as in `ops.cell`: the inputs are 0 and 1, node n is 2 + n.
    """
    places = {id(node): 2 + n for n, node in enumerate(nodes)}
    inputs: dict[int, Tensor] = {}
    edges: dict[tuple[int, int], dict[Call, Weight]] = {}
    seen: set[int] = set()
    for target, node in enumerate(nodes):
        if node.addends or id(node) in seen:
            return None
        seen.add(id(node))
        for call, weight in _merged(node).items():
            source = places.get(id(call.x))
            if source is None:
                x = _input([call])
                known = list(inputs)
                source = known.index(id(x)) if id(x) in inputs else len(known)
                inputs[id(x)] = x
            elif source >= 2 + target:
                return None
            edge = edges.setdefault((target, source), {})
            if any(call.forward.found.primitive == c.forward.found.primitive for c in edge):
                return None
            edge[call] = weight
    if len(inputs) != 2 or {target for target, _ in edges} != set(range(len(nodes))):
        return None
    return list(inputs.values()), edges


def _input(calls: list[Call]) -> Tensor:
    """The tensor that the calls read, which must still be what it was when they were made."""
    x = calls[0].x
    made = x if isinstance(x, Tensor) else x.tensor()
    if any(version_of(x) != call.version for call in calls):
        raise RuntimeError(
            "the input of a fused candidate was changed in place before its result was used; "
            "leave it unchanged, or call metadnas_ext.unfuse on the model"
        )
    return made


def version_of(x: object) -> int:
    """How often a tensor was changed in place; 0 where it is still to be made."""
    made = x if isinstance(x, Tensor) else getattr(x, "_value", None)
    return made._version if isinstance(made, Tensor) and not made.is_inference() else 0


def _stacked(weights: list[Weight], x: Tensor) -> Tensor:
    """Mixing weights (O) in the precision in which activations like x are computed."""
    dtype = torch.float32 if x.dtype in HALF else x.dtype
    tensors = [w if isinstance(w, Tensor) else x.new_full((), w) for w in weights]
    return torch.stack([t if t.dtype == dtype else t.to(dtype) for t in tensors])


def _running(own: list[nn.BatchNorm2d], mode: NormMode | None) -> Tensor | None:
    return None if mode is None or mode.batch_statistics else norms.running(own)


def _take_steps(calls: list[Call], stats: Tensor, values: int) -> None:
    """Lets the batch norms of every call take their step, once. stats (1, S, 2, C)."""
    start = 0
    fresh: list[int] = []  # rows of calls that are made for the first time
    for call in calls:
        end = start + len(call.norms)
        fresh += [] if call.done else range(start, end)
        start = end
        call.done = True
    own = [norm for call in calls for norm in call.norms]
    if len(fresh) == len(own):
        norms.update(own, stats[0], values)
    elif fresh:
        norms.update([own[slot] for slot in fresh], stats[0, fresh], values)


@functools.lru_cache(maxsize=1024)
def _layout(shapes: tuple[torch.Size, ...]) -> FlatLayout:
    return FlatLayout((str(index), tuple(shape)) for index, shape in enumerate(shapes))
