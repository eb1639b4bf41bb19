"""Convolution and batch norm in one, with a client axis: DARTS' preprocessing and stem."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metadnas_ext._native import REFERENCE
from metadnas_ext.ops import reference, reference_layers
from metadnas_ext.ops.precision import half_dtype, in_half, in_single, takes_half


def relu_conv_bn(
    x: Tensor,
    params: Tensor,
    channels: int,
    *,
    stride: int = 1,
    relu: bool = True,
    affine: bool = False,
    running: Tensor | None = None,
    counts: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """DARTS' preprocessing of a cell's inputs, for G clients at once.

    ReLU, 1x1 convolution, batch norm; at stride 2 the factorized reduce of Liu et al., "DARTS"
    (ICLR 2019): half of the outputs reads the pixels at (2h, 2w), the other half those at
    (2h + 1, 2w + 1), with zeros behind an odd size.

    Args:
        x: (G, N, H, W, Cin) activations, channels last; precisions as of `mixed_op`.
        params: (G, P) packed parameters: the weight (channels, Cin) row by row (at stride 2 conv_1
            and conv_2, one behind the other), then with `affine` gamma and beta, as the layers of
            `space.primitives` are packed.
        channels: of the output; even at stride 2.
        stride: 1 or 2; 2 gives ceil(H/2) x ceil(W/2).
        relu: False leaves the ReLU out.
        affine: whether the batch norm has gamma and beta.
        running: (G, 1, 2, channels) running mean and biased variance: eval mode. None: training
            mode.
        counts: (G) int64 on the device of x, images of each client that count; the rest is skipped,
            its output zero. None: all N.
        eps: batch norm's epsilon.

    Returns:
        out (G, N, ceil(H/stride), ceil(W/stride), channels), and the statistics used,
        (G, 1, 2, channels), mean and biased variance (not differentiable).

    Keeps x and one tensor of out's size for the backward pass: out itself, or, with `affine`, out
    before gamma and beta (gamma may be 0). A gradient nobody needs is not computed. Differentiable
    twice (the second time at the speed of the twin). Results depend neither on the number of
    threads nor, for a client, on the other clients or on images that do not count.

    Raises:
        RuntimeError: on wrong shapes, dtypes or devices, naming the argument.
    """

    def run(x: Tensor, params: Tensor, running: Tensor | None) -> tuple[Tensor, Tensor]:
        rest = (running, counts, channels, stride, relu, affine, eps)
        if REFERENCE:
            out, stats = reference_layers.relu_conv_bn(x, params, *rest)
            return out, stats.detach()
        out, stats, _ = torch.ops.metadnas_ext.relu_conv_bn_forward(x, params, *rest)
        return out, stats

    half = half_dtype(x)
    if half is None:
        return run(x, params, running)
    return (in_half if takes_half(x) else in_single)(run, half, x, params, running)


def conv3x3_bn(
    x: Tensor,
    params: Tensor,
    channels: int,
    *,
    affine: bool = True,
    running: Tensor | None = None,
    counts: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """DARTS' stem: 3x3 convolution with padding 1, batch norm.

    Made for few input channels: patches (G, N, H, W, 9 Cin) are laid out in memory.

    Args:
        x: (G, N, H, W, Cin) images.
        params: (G, P): the weight (channels, Cin, 3, 3), then with `affine` gamma and beta.
        channels, affine, running, counts, eps: as in `relu_conv_bn`, as are results and errors.
    """
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    patches = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)  # (G, N, H, W, Cin * 3 * 3)
    return relu_conv_bn(
        patches,
        params,
        channels,
        relu=False,
        affine=affine,
        running=running,
        counts=counts,
        eps=eps,
    )


def _register() -> None:
    @torch.library.register_fake("metadnas_ext::relu_conv_bn_forward")  # type: ignore[untyped-decorator]
    def _(
        x: Tensor,
        params: Tensor,
        running: Tensor | None,
        counts: Tensor | None,
        channels: int,
        stride: int,
        relu: bool,
        affine: bool,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        clients, images, height, width, _ = x.shape
        size = ((height + stride - 1) // stride, (width + stride - 1) // stride)
        shape = (clients, images, *size, channels)
        return (
            x.new_empty(shape),
            params.new_empty(clients, 1, 2, channels),
            x.new_empty(shape if affine else 0),
        )

    @torch.library.register_fake("metadnas_ext::relu_conv_bn_backward")  # type: ignore[untyped-decorator]
    def _(grad_out: Tensor, x: Tensor, params: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        need_x, need_params = args[-2:]
        return (
            x.new_empty(x.shape if need_x else 0),
            params.new_empty(params.shape if need_params else 0),
        )

    torch.library.register_autograd(
        "metadnas_ext::relu_conv_bn_forward", _backward, setup_context=_save_forward
    )
    torch.library.register_autograd(
        "metadnas_ext::relu_conv_bn_backward", _double_backward, setup_context=_save_backward
    )


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, params, running, counts, *ctx.rest = inputs
    out, stats, normal = output
    *_, affine, _ = ctx.rest
    ctx.training = running is None
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(stats, normal)
    ctx.save_for_backward(x, params, stats, normal if affine else out, counts)


def _backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 9
    x, params, stats, normal, counts = ctx.saved_tensors
    needs = ctx.needs_input_grad[:2]
    grads = torch.ops.metadnas_ext.relu_conv_bn_backward(
        grad_out, x, params, stats, normal, counts, *ctx.rest, ctx.training, *needs
    )
    wanted = (grad if need else None for grad, need in zip(grads, needs, strict=True))
    return (*wanted, *(None,) * 7)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_out, x, params, stats, _, counts, *rest = inputs
    *ctx.rest, ctx.training, need_x, need_params = rest
    ctx.needs = (need_x, need_params)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad_out, x, params, stats, counts)


def _double_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, stats, counts = ctx.saved_tensors
    running = None if ctx.training else stats

    def function(x: Tensor, params: Tensor) -> Tensor:
        wide = x.to(params.dtype)  # activations may be of half precision
        out, _ = reference_layers.relu_conv_bn(wide, params, running, counts, *ctx.rest)
        return out.to(x.dtype)

    second = reference.double_backward(function, tensors, grads, ctx.needs)
    return (*second, *(None,) * 11)


if not REFERENCE:
    _register()
