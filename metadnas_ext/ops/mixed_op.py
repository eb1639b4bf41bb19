"""The weighted mixed operation of differentiable architecture search, with a client axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metadnas_ext._native import REFERENCE
from metadnas_ext.ops import reference
from metadnas_ext.ops.precision import half_dtype, in_half, in_single, takes_half
from metadnas_ext.space.primitives import (
    PRIMITIVES,
    BatchNorm,
    Conv,
    check_primitive,
    layers,
    parameter_shapes,
)

KEEP = ("all", "middle", "input")


def mixed_op(
    x: Tensor,
    weights: Tensor,
    params: Tensor,
    candidates: Sequence[str] = PRIMITIVES,
    *,
    stride: int = 1,
    affine: bool = False,
    running: Tensor | None = None,
    counts: Tensor | None = None,
    eps: float = 1e-5,
    keep: str = "all",
) -> tuple[Tensor, Tensor]:
    """Sum over candidates of mixing weight times candidate(x), for G clients at once.

    The mixed operation of Liu et al., "DARTS" (ICLR 2019), equation 2, with the mixing weights
    given (softmax, sigmoid, one-hot, ... of the architecture parameters).

    Args:
        x: (G, N, H, W, C) activations, channels last. float32 and float64 are computed as they are,
            bfloat16 and float16 in float32; under autocast the result is in autocast's precision.
        weights: (G, O) mixing weights, one per candidate.
        params: (G, P) packed parameters of all candidates, see `packed_shapes`.
        candidates: distinct names from `PRIMITIVES`, in any order.
        stride: 1 or 2; 2 gives ceil(H/2) x ceil(W/2).
        affine: whether batch norms have gamma and beta (packed behind their convolution).
        running: (G, S, 2, C) running mean and biased variance: eval mode. None: training mode.
        counts: (G) int64 on the device of x, images of each client that count; the rest is skipped,
            its output zero. None: all N.
        eps: batch norm's epsilon.
        keep: what a forward pass that may be differentiated leaves in memory besides x. "all":
            every convolution's result, 6 tensors of the output's size with all candidates;
            "middle": the 2 between the halves of separable convolutions; "input": none. Less
            memory is more time in the backward pass; results agree to rounding.

    Returns:
        out (G, N, ceil(H/stride), ceil(W/stride), C), and the statistics used, (G, S, 2, C), mean
        and biased variance of the S batch norms in parameter order (not differentiable).

    `none` contributes exactly nothing: NaN and infinity in x do not pass through it, and its
    weight's gradient is 0. Differentiable twice (the second time at the speed of the twin).
    Results do not depend on the number of threads, nor a client's on the other clients.

    Raises:
        RuntimeError: on wrong shapes, dtypes or devices, naming the argument.
        ValueError: on an unknown candidate or `keep`.
    """
    indices = [check_primitive(name) for name in candidates]
    level = check_keep(keep, x, weights, params)

    def run(
        x: Tensor, weights: Tensor, params: Tensor, running: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        rest = (running, counts, indices, stride, affine, eps)
        if REFERENCE:
            out, stats = reference.mixed_op(x, weights, params, *rest)
            return out, stats.detach()
        out, stats, _ = torch.ops.metadnas_ext.mixed_op_forward(x, weights, params, *rest, level)
        return out, stats

    half = half_dtype(x)
    if half is None:
        return run(x, weights, params, running)
    return (in_half if takes_half(x) else in_single)(run, half, x, weights, params, running)


def check_keep(keep: str, *tensors: Tensor) -> int:
    """Index of `keep`; of "input" where no gradient can be asked for."""
    if keep not in KEEP:
        raise ValueError(f"keep={keep!r} is unknown; known: {', '.join(KEEP)}")
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors):
        return KEEP.index("input")
    return KEEP.index(keep)


def kept_and_norms(
    candidates: Sequence[int], channels: int, stride: int, keep: int
) -> tuple[int, int]:
    """Pointwise results kept for the backward pass, and batch norms, of one mixed operation."""
    parts = [layers(PRIMITIVES[c], channels, stride) for c in candidates]
    norms = [sum(isinstance(layer, BatchNorm) for layer in part) for part in parts]
    convolutions = [any(isinstance(layer, Conv) for layer in part) for part in parts]
    units = [count for count, has in zip(norms, convolutions, strict=True) if has]
    kept = {"all": sum(units), "middle": sum(count - 1 for count in units), "input": 0}
    return kept[KEEP[keep]], sum(norms)


def packed_shapes(
    candidates: Sequence[str], channels: int, stride: int = 1, affine: bool = False
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the packed parameters, in order: `<candidate index>.<DARTS name>`."""
    return {
        f"{index}.{name}": shape
        for index, primitive in enumerate(candidates)
        for name, shape in parameter_shapes(layers(primitive, channels, stride, affine)).items()
    }


def batch_norms(candidates: Sequence[str], channels: int, stride: int = 1) -> tuple[str, ...]:
    """Names of the batch norms in the order of `running` and the statistics."""
    return tuple(
        f"{index}.{layer.name}"
        for index, primitive in enumerate(candidates)
        for layer in layers(primitive, channels, stride)
        if isinstance(layer, BatchNorm)
    )


def _register() -> None:
    @torch.library.register_fake("metadnas_ext::mixed_op_forward")  # type: ignore[untyped-decorator]
    def _(
        x: Tensor,
        weights: Tensor,
        params: Tensor,
        running: Tensor | None,
        counts: Tensor | None,
        candidates: Sequence[int],
        stride: int,
        affine: bool,
        eps: float,
        keep: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        clients, images, height, width, channels = x.shape
        units, norms = kept_and_norms(candidates, channels, stride, keep)
        size = ((height + stride - 1) // stride, (width + stride - 1) // stride)
        return (
            x.new_empty(clients, images, *size, channels),
            params.new_empty(clients, norms, 2, channels),
            x.new_empty(units, clients, images, *size, channels),
        )

    @torch.library.register_fake("metadnas_ext::mixed_op_backward")  # type: ignore[untyped-decorator]
    def _(
        grad_out: Tensor, x: Tensor, weights: Tensor, params: Tensor, *args: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        *_, need_x, need_params = args
        return (
            x.new_empty(x.shape if need_x else (0,)),
            weights.new_empty(weights.shape),
            params.new_empty(params.shape if need_params else (0,)),
        )

    torch.library.register_autograd(
        "metadnas_ext::mixed_op_forward", _backward, setup_context=_save_forward
    )
    torch.library.register_autograd(
        "metadnas_ext::mixed_op_backward", _double_backward, setup_context=_save_backward
    )


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weights, params, running, counts, *ctx.rest = inputs
    _, stats, z = output
    ctx.training = running is None
    ctx.set_materialize_grads(False)  # z's, which nobody uses, would be zeros of its size
    ctx.mark_non_differentiable(stats, z)
    ctx.save_for_backward(x, weights, params, stats, z, counts)


def _backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 10
    x, weights, params, stats, z, counts = ctx.saved_tensors
    need_x, _, need_params, *_ = ctx.needs_input_grad
    grad_x, grad_weights, grad_params = torch.ops.metadnas_ext.mixed_op_backward(
        *(grad_out, x, weights, params, stats, z, counts, *ctx.rest),
        *(ctx.training, need_x, need_params),
    )
    return (
        grad_x if need_x else None,
        grad_weights,
        grad_params if need_params else None,
        *(None,) * 7,
    )


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_out, x, weights, params, stats, _, counts, *rest = inputs
    *ctx.rest, _, ctx.training, need_x, need_params = rest  # without keep
    ctx.needed = (need_x, True, need_params)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad_out, x, weights, params, stats, counts)


def _double_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, stats, counts = ctx.saved_tensors
    running = None if ctx.training else stats

    def function(x: Tensor, weights: Tensor, params: Tensor) -> Tensor:
        wide = x.to(params.dtype)  # activations may be of half precision
        return reference.mixed_op(wide, weights, params, running, counts, *ctx.rest)[0].to(x.dtype)

    second = reference.double_backward(function, tensors, grads, ctx.needed)
    return (*second, *(None,) * 11)


if not REFERENCE:
    _register()
