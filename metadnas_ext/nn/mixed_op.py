"""The mixed operation as a module that drops into DARTS code."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metadnas_ext import ops
from metadnas_ext.nn.functional import EPS, MOMENTUM, check_clients, check_images
from metadnas_ext.nn.layout import FlatLayout
from metadnas_ext.nn.named import gather, register_parameters, register_running, update_running
from metadnas_ext.ops.mixed_op import check_keep
from metadnas_ext.space.primitives import PRIMITIVES


class MixedOp(nn.Module):
    """Weighted sum of candidate operations, fused; called as `op(x, p)`.

    Parameters and buffers carry the public DARTS names (`_ops.4.op.1.weight`, ...), so state dicts
    load both ways.

    Args:
        C: channels.
        stride: 1 or 2.
        candidates: distinct names from `PRIMITIVES`.
        affine: whether batch norms have gamma and beta.
        clients: None for an ordinary module; G for a leading client axis on everything.
        keep: what stays in memory for the backward pass, "all", "middle" or "input"; see
            `ops.mixed_op`.

    Shape: x (N, C, H, W), p (O) -> (N, C, ceil(H/stride), ceil(W/stride)); with clients a leading G
    on all. Fastest when x is in channels_last memory format, which is also that of the result.
    """

    def __init__(
        self,
        C: int,
        stride: int,
        candidates: Sequence[str] = PRIMITIVES,
        *,
        affine: bool = False,
        clients: int | None = None,
        keep: str = "all",
    ) -> None:
        super().__init__()
        check_keep(keep)
        check_clients(clients)
        self.keep = keep
        self.channels = C
        self.stride = stride
        self.candidates = tuple(candidates)
        self.affine = affine
        self.clients = clients
        shapes = ops.packed_shapes(self.candidates, C, stride, affine)
        self._layout = FlatLayout((f"_ops.{name}", shape) for name, shape in shapes.items())
        self._running_layout = FlatLayout(
            (f"_ops.{name}.{what}", (C,))
            for name in ops.batch_norms(self.candidates, C, stride)
            for what in ("running_mean", "running_var")
        )
        lead = () if clients is None else (clients,)
        register_parameters(self, self._layout, torch.empty(*lead, self._layout.size))
        running = torch.zeros(*lead, self._running_layout.size)
        register_running(self, self._running_layout, running)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """PyTorch's defaults: Kaiming-uniform convolutions, batch norms at 1 and 0."""
        lead = 0 if self.clients is None else 1
        for name, parameter in self.named_parameters():
            if parameter.dim() - lead == 1:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                bound = 1 / math.sqrt(math.prod(parameter.shape[lead + 1 :]))
                parameter.uniform_(-bound, bound)
        for name, buffer in self.named_buffers():
            buffer.fill_(1 if name.endswith("running_var") else 0)

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        single = self.clients is None
        check_images(x, self.channels, self.clients)
        if single:
            x, p = x[None], p[None]
        params = self._gather(self._layout, x)  # (G, P)
        out, stats = ops.mixed_op(
            x.permute(0, 1, 3, 4, 2),
            p,
            params,
            self.candidates,
            stride=self.stride,
            affine=self.affine,
            running=None if self.training else self._running(x),
            eps=EPS,
            keep=self.keep,
        )
        if self.training and self._running_layout.size:
            positions = out[0, ..., 0].numel()
            means, variances = stats.unbind(2)
            variances = variances * (positions / (positions - 1))
            unbiased = torch.stack([means, variances], 2).flatten(1)  # (G, R)
            update_running(self, self._running_layout, unbiased, MOMENTUM, self.clients)
        out = out.permute(0, 1, 4, 2, 3)
        return out.squeeze(0) if single else out  # out[0] would copy the gradient

    def _gather(self, layout: FlatLayout, x: Tensor) -> Tensor:
        """The tensors that `layout` names as (G, P); where there are none, of x's dtype."""
        return gather(self, layout, self.clients) if layout.size else x.new_zeros(x.shape[0], 0)

    def _running(self, x: Tensor) -> Tensor:
        running = self._gather(self._running_layout, x)  # (G, R)
        return running.view(x.shape[0], -1, 2, self.channels)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, stride={self.stride}, candidates={self.candidates}, "
            f"affine={self.affine}, clients={self.clients}"
        )
