"""A whole cell of weighted mixed operations, with a client axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metadnas_ext._native import REFERENCE
from metadnas_ext.ops import reference
from metadnas_ext.ops.mixed_op import check_keep, kept_and_norms
from metadnas_ext.ops.precision import half_dtype, in_half, in_single, takes_half
from metadnas_ext.space.primitives import check_primitive

CELL_INPUTS = 2


def cell(
    s0: Tensor,
    s1: Tensor,
    weights: Tensor,
    params: Tensor,
    sources: Sequence[int],
    targets: Sequence[int],
    candidates: Sequence[Sequence[str]],
    *,
    reduction: bool = False,
    affine: bool = False,
    running: Tensor | None = None,
    counts: Tensor | None = None,
    eps: float = 1e-5,
    keep: str = "all",
) -> tuple[Tensor, Tensor]:
    """A cell of differentiable architecture search: mixed operations on the edges of a graph.

    Node n is the sum of the mixed operations on the edges that end there; the result is all nodes,
    one behind another along the channels (Liu et al., "DARTS", ICLR 2019, figure 1). The edges that
    leave one state share its relu, pools and gradient; they add straight into their nodes.

    Args:
        s0: (G, N, H, W, C) first input, channels last; precisions as of `mixed_op`.
        s1: second input, of the same shape.
        weights: (G, E, O) mixing weights; 1 on the only candidate of a discrete edge.
        params: (G, P) packed parameters edge by edge, each as of `mixed_op`.
        sources: state that each edge leaves: 0 and 1 are s0 and s1, 2 + n is node n.
        targets: node at which each edge ends.
        candidates: O distinct names from `PRIMITIVES` for each edge.
        reduction: edges from s0 and s1 have stride 2.
        affine, running, counts, eps, keep: as of `mixed_op`; batch norms edge by edge.

    Returns:
        out (G, N, H', W', nodes * C) and statistics (G, S, 2, C), as of `mixed_op`.

    Raises:
        RuntimeError: on wrong shapes, dtypes, devices or graphs, naming the argument.
        ValueError: on an unknown candidate or `keep`, or edges with different numbers of them.
    """
    indices = [[check_primitive(name) for name in edge] for edge in candidates]
    if len(indices) != len(sources) or len({len(edge) for edge in indices}) != 1:
        numbers = [len(edge) for edge in indices]
        raise ValueError(f"candidates has {numbers} for {len(sources)} edges, expected one number")
    flat = [index for edge in indices for index in edge]
    level = check_keep(keep, s0, s1, weights, params)

    def run(
        s0: Tensor, s1: Tensor, weights: Tensor, params: Tensor, running: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        rest = (running, counts, sources, targets, flat, reduction, affine, eps)
        if REFERENCE:
            out, stats = reference.cell(s0, s1, weights, params, *rest)
            return out, stats.detach()
        out, stats, _ = torch.ops.metadnas_ext.cell_forward(s0, s1, weights, params, *rest, level)
        return out, stats

    half = half_dtype(s0)
    if half is None:
        return run(s0, s1, weights, params, running)
    if takes_half(s0):

        def beside(s0: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
            return run(s0, s1.to(s0.dtype), *rest)

        return in_half(beside, half, s0, weights, params, running)
    return in_single(run, half, s0, s1, weights, params, running)


def _register() -> None:
    @torch.library.register_fake("metadnas_ext::cell_forward")  # type: ignore[untyped-decorator]
    def _(
        s0: Tensor,
        s1: Tensor,
        weights: Tensor,
        params: Tensor,
        running: Tensor | None,
        counts: Tensor | None,
        sources: Sequence[int],
        targets: Sequence[int],
        candidates: Sequence[int],
        reduction: bool,
        affine: bool,
        eps: float,
        keep: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        clients, images, height, width, channels = s0.shape
        each = len(candidates) // len(sources)
        kept = norms = 0
        for e, source in enumerate(sources):
            stride = 2 if reduction and source < CELL_INPUTS else 1
            more = kept_and_norms(candidates[e * each : (e + 1) * each], channels, stride, keep)
            kept, norms = kept + more[0], norms + more[1]
        step = 2 if reduction else 1
        size = ((height + step - 1) // step, (width + step - 1) // step)
        return (
            s0.new_empty(clients, images, *size, (max(targets) + 1) * channels),
            params.new_empty(clients, norms, 2, channels),
            s0.new_empty(kept, clients, images, *size, channels),
        )

    @torch.library.register_fake("metadnas_ext::cell_backward")  # type: ignore[untyped-decorator]
    def _(
        grad_out: Tensor, s0: Tensor, s1: Tensor, weights: Tensor, params: Tensor, *args: Any
    ) -> tuple[Tensor, ...]:
        *_, need_s0, need_s1, need_params = args
        return (
            s0.new_empty(s0.shape if need_s0 else (0,)),
            s1.new_empty(s1.shape if need_s1 else (0,)),
            weights.new_empty(weights.shape),
            params.new_empty(params.shape if need_params else (0,)),
        )

    torch.library.register_autograd(
        "metadnas_ext::cell_forward", _backward, setup_context=_save_forward
    )
    torch.library.register_autograd(
        "metadnas_ext::cell_backward", _double_backward, setup_context=_save_backward
    )


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    s0, s1, weights, params, running, counts, *ctx.rest = inputs
    out, stats, z = output
    ctx.training = running is None
    ctx.set_materialize_grads(False)  # z's, which nobody uses, would be zeros of its size
    ctx.mark_non_differentiable(stats, z)
    ctx.save_for_backward(s0, s1, weights, params, out, stats, z, counts)


def _backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 13
    need_s0, need_s1, _, need_params, *_ = ctx.needs_input_grad
    *grads, grad_weights, grad_params = torch.ops.metadnas_ext.cell_backward(
        *(grad_out, *ctx.saved_tensors, *ctx.rest),
        *(ctx.training, need_s0, need_s1, need_params),
    )
    return (
        grads[0] if need_s0 else None,
        grads[1] if need_s1 else None,
        grad_weights,
        grad_params if need_params else None,
        *(None,) * 9,
    )


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_out, s0, s1, weights, params, _, stats, _, counts, *rest = inputs
    *ctx.rest, _, ctx.training, need_s0, need_s1, need_params = rest  # without keep
    ctx.needed = (need_s0, need_s1, True, need_params)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad_out, s0, s1, weights, params, stats, counts)


def _double_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, stats, counts = ctx.saved_tensors
    running = None if ctx.training else stats

    def function(s0: Tensor, s1: Tensor, weights: Tensor, params: Tensor) -> Tensor:
        a, b = s0.to(params.dtype), s1.to(params.dtype)  # activations may be of half precision
        out, _ = reference.cell(a, b, weights, params, running, counts, *ctx.rest)
        return out.to(s0.dtype)

    second = reference.double_backward(function, tensors, grads, ctx.needed)
    return (*second, *(None,) * 15)


if not REFERENCE:
    _register()
