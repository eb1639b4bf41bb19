"""Ordinary modules as functions of flat parameters, with a client axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from metadnas_ext.nn.layout import FlatLayout
from metadnas_ext.space.modules import ModuleTemplate
from metadnas_ext.space.primitives import parameter_shapes


def run_module(
    module: ModuleTemplate,
    x: Tensor,
    params: Tensor,
    running: Tensor | None,
    counts: Sequence[int] | None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A module's forward pass for G clients, each with its own parameters.

    Args:
        x: (G, N, H, W, C) activations.
        params: (G, P) in the order of `module.parts`.
        running: (G, R) mean and variance of each batch norm: eval mode. None: training mode.
        counts: (G) images that count; None: all N.
        scale: (G) factors of the result; None: 1.

    Returns:
        out (G, N, H', W', C'), zeros for images that do not count, and statistics (G, R): in
        training mode the batch's means and, unlike the kernels', unbiased variances.

    One pass a client, of just its images: a client's result must not depend on its cohort.
    """
    images, height, width = x.shape[1:4]
    size = (math.ceil(height / module.stride), math.ceil(width / module.stride))
    outs, stats = [], []
    for g in range(x.shape[0]):
        used = images if counts is None else counts[g]
        own = None if running is None else running[g]
        if used == 0:
            outs.append(x.new_zeros(images, *size, module.channels_out))
            stats.append(params.new_zeros(_norm_layout(module).size) if own is None else own)
            continue
        image = x[g, :used].permute(0, 3, 1, 2)  # (n, C, H, W)
        out, stat = _run_one(module, image, params[g], own)
        if scale is not None:
            # Here, not for all at once: the sum in its gradient must not depend on the cohort.
            out = scale[g] * out
        padding = (0, 0, 0, 0, 0, 0, 0, images - used)
        outs.append(F.pad(out.permute(0, 2, 3, 1), padding))  # (N, H', W', C')
        stats.append(stat)
    return torch.stack(outs), torch.stack(stats)


def scaled(x: Tensor, scale: Tensor, counts: Sequence[int] | None) -> Tensor:
    """x (G, N, ...) times scale (G), client by client; zeros for images that do not count.

    The sum in the factor's gradient must depend neither on the cohort nor on other images.
    """
    if counts is None:
        return torch.stack([s * own for s, own in zip(scale, x, strict=True)])
    ends = [0] * (2 * (x.dim() - 2))
    return torch.stack(
        [
            F.pad(s * own[:used], (*ends, 0, x.shape[1] - used))
            for s, own, used in zip(scale, x, counts, strict=True)
        ]
    )


def _run_one(
    module: ModuleTemplate, x: Tensor, params: Tensor, running: Tensor | None
) -> tuple[Tensor, Tensor]:
    """x (n, C, H, W), params (P), running (R) or None -> out (n, C', H', W'), statistics (R)."""
    norms = _norm_layout(module)
    # Copies: products may round differently with the address, which depends on the cohort.
    views = FlatLayout(parameter_shapes(module.parts).items()).views(params.clone())
    row = params.new_zeros(norms.size) if running is None else running.clone()
    statistics = norms.views(row.detach())
    constants = {
        name: t.to(params.dtype) if t.is_floating_point() else t
        for name, t in module.constants_on(params.device).items()
    }
    module.skeleton.train(running is None)
    out = torch.func.functional_call(
        module.skeleton,
        {**views, **statistics, **constants},
        (x.to(params.dtype).clone(memory_format=torch.contiguous_format),),
    )
    return out.to(x.dtype), row  # batch norms have written their statistics into row


def _norm_layout(module: ModuleTemplate) -> FlatLayout:
    return FlatLayout(
        (f"{norm.name}.{what}" if norm.name else what, (norm.channels,))
        for norm in module.norms
        for what in ("running_mean", "running_var")
    )
