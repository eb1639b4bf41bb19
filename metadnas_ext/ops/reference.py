"""Pure-torch twins of the native operators: fallback, oracle of the tests, double backward.

Written for clarity, with ordinary PyTorch layers' arithmetic and one client at a time. Every
function is differentiable any number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from metadnas_ext.space.primitives import (
    PRIMITIVES,
    BatchNorm,
    Conv,
    Layer,
    layers,
    parameter_shapes,
)


def mixed_op(
    x: Tensor,
    weights: Tensor,
    params: Tensor,
    running: Tensor | None,
    counts: Tensor | None,
    candidates: Sequence[int],
    stride: int,
    affine: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of candidate operations for each client.

    x (G, N, H, W, C), weights (G, O), params (G, P), running (G, S, 2, C) or None in training mode,
    counts (G) images that count. Returns out (G, N, H', W', C) and statistics (G, S, 2, C): mean
    and biased variance of every batch norm.
    """
    outs, stats = [], []
    images = x.shape[1]
    for g in range(x.shape[0]):
        used = images if counts is None else int(counts[g])
        client = _Client(
            params[g],
            None if running is None else running[g],
            [PRIMITIVES[c] for c in candidates],
            x.shape[-1],
            stride,
            affine,
            eps,
        )
        out = client(x[g, :used].permute(0, 3, 1, 2), weights[g])  # (n, C, H', W')
        out = F.pad(out, (0, 0, 0, 0, 0, 0, 0, images - used))  # (N, C, H', W')
        outs.append(out.permute(0, 2, 3, 1))  # (N, H', W', C)
        stats.append(client.statistics(x))
    return torch.stack(outs), torch.stack(stats)


def cell(
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
) -> tuple[Tensor, Tensor]:
    """Mixed operations along the edges of a cell.

    s0, s1 (G, N, H, W, C), weights (G, E, O), params (G, P) edge by edge, running (G, S, 2, C) or
    None, candidates O an edge. Returns out (G, N, H', W', nodes * C) and statistics (G, S, 2, C).
    """
    states: list[Tensor | None] = [s0, s1, *[None] * (max(targets) + 1)]
    each = len(candidates) // len(sources)
    stats: list[Tensor | None] = [None] * len(sources)
    starts = _edge_starts(s0.shape[-1], sources, candidates, reduction, affine)
    # From the first state to the last: a node is complete before an edge reads it.
    for source in range(len(states)):
        for e in (e for e, s in enumerate(sources) if s == source):
            x = states[source]
            assert x is not None
            (p0, n0), (p1, n1) = starts[e : e + 2]
            out, stats[e] = mixed_op(
                x,
                weights[:, e],
                params[:, p0:p1],
                None if running is None else running[:, n0:n1],
                counts,
                candidates[e * each : (e + 1) * each],
                2 if reduction and source < 2 else 1,
                affine,
                eps,
            )
            total = states[2 + targets[e]]
            states[2 + targets[e]] = out if total is None else total + out
    nodes = [state for state in states[2:] if state is not None]
    return torch.cat(nodes, -1), torch.cat([s for s in stats if s is not None], 1)


def _edge_starts(
    channels: int, sources: Sequence[int], candidates: Sequence[int], reduction: bool, affine: bool
) -> list[tuple[int, int]]:
    """First parameter and first batch norm of each edge, and behind the last."""
    starts = [(0, 0)]
    each = len(candidates) // len(sources)
    for e, source in enumerate(sources):
        stride = 2 if reduction and source < 2 else 1
        params, norms = starts[-1]
        for candidate in candidates[e * each : (e + 1) * each]:
            parts = layers(PRIMITIVES[candidate], channels, stride, affine)
            params += sum(torch.Size(s).numel() for s in parameter_shapes(parts).values())
            norms += sum(isinstance(layer, BatchNorm) for layer in parts)
        starts.append((params, norms))
    return starts


def weighted_mean(x: Tensor, weights: Tensor) -> Tensor:
    """x (G, ...), weights (G) of at least 0 -> sum of weights * x over their sum, (...)."""
    share = weights.double() / _sum_in_order(weights.double())
    share = share.view(-1, *[1] * (x.dim() - 1))
    # 0 * NaN is NaN: a client of weight 0 must not reach the result.
    x = x.masked_fill((share == 0) & ~x.isfinite(), 0)
    return _sum_in_order(share * x).to(x.dtype)


def _sum_in_order(x: Tensor) -> Tensor:
    """x (G, ...) -> (...). torch.sum groups the clients by their number, so that even one of zeros
    moves the last digit of the others' sum."""
    first, *others = x.unbind()
    return sum(others, start=first)


def double_backward(
    function: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> Sequence[Tensor | None]:
    """Gradient of a backward pass: the twin's first gradient, differentiated by autograd.

    function: the twin, of inputs x_i. tensors: the gradient of its output, then the x_i. grads: of
    the first gradients, where `needed`. What a forward pass keeps for its backward pass is a
    function of the x_i and the twin makes it anew, so all of the gradient arrives at `tensors`.
    Made of differentiable operators on these: with create_graph it can be differentiated again.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, because the output's gradient may depend on an x: only the direct path counts here.
        grad_out, *leaves = [
            t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in tensors
        ]
        first = torch.autograd.grad(
            function(*leaves), leaves, grad_out, create_graph=True, materialize_grads=True
        )
        used = [
            (f, g)
            for f, g, want in zip(first, grads, needed, strict=True)
            if want and g is not None and f.requires_grad
        ]
        if not used:
            return (None,) * len(tensors)
        return torch.autograd.grad(
            torch.stack([(f * g).sum() for f, g in used]).sum(),
            [grad_out, *leaves],
            create_graph=create_graph,
            materialize_grads=True,
        )


class _Client:
    """One client's mixed operation; collects batch-norm statistics in parameter order."""

    def __init__(
        self,
        params: Tensor,
        running: Tensor | None,
        primitives: Sequence[str],
        channels: int,
        stride: int,
        affine: bool,
        eps: float,
    ) -> None:
        self.primitives = primitives
        self.channels = channels
        self.stride = stride
        self.affine = affine
        self.eps = eps
        self.running = running
        self.stats: list[Tensor] = []
        self._params = params
        self._next = 0

    def __call__(self, x: Tensor, weights: Tensor) -> Tensor:
        # Zeros that autograd takes for a function of x, so that `none` alone can be differentiated.
        total = x[:, :, :: self.stride, :: self.stride].masked_fill(
            x.new_ones((), dtype=torch.bool), 0
        )
        for k, primitive in enumerate(self.primitives):
            parts = layers(primitive, self.channels, self.stride, self.affine)
            result = self._candidate(primitive, x, self._take(parts), parts)
            if result is not None:
                total = total + weights[k] * result
        return total

    def statistics(self, x: Tensor) -> Tensor:
        if not self.stats:
            return x.new_zeros(0, 2, self.channels)
        return torch.stack(self.stats)  # (S, 2, C)

    def _take(self, parts: tuple[Layer, ...]) -> dict[str, Tensor]:
        """The candidate's parameters, cut from the packed ones."""
        found = {}
        for name, shape in parameter_shapes(parts).items():
            count = int(torch.Size(shape).numel())
            found[name] = self._params[self._next : self._next + count].view(shape)
            self._next += count
        return found

    def _candidate(
        self, primitive: str, x: Tensor, params: dict[str, Tensor], parts: tuple[Layer, ...]
    ) -> Tensor | None:
        if primitive == "none":
            return None  # contributes exactly nothing, NaN and infinity included
        if primitive == "max_pool_3x3":
            return self._norm(F.max_pool2d(x, 3, self.stride, 1), params, parts[0])
        if primitive == "avg_pool_3x3":
            pooled = F.avg_pool2d(x, 3, self.stride, 1, count_include_pad=False)
            return self._norm(pooled, params, parts[0])
        if primitive == "skip_connect":
            return x if self.stride == 1 else self._factorized_reduce(x, params, parts)
        return self._convolutions(primitive, x, params, parts)

    def _factorized_reduce(
        self, x: Tensor, params: dict[str, Tensor], parts: tuple[Layer, ...]
    ) -> Tensor:
        x = F.relu(x)
        # Zeros behind an odd size give the shifted grid as many pixels as the other.
        shifted = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))[:, :, 1:, 1:]
        halves = [
            F.conv2d(x, params["conv_1.weight"], stride=2),
            F.conv2d(shifted, params["conv_2.weight"], stride=2),
        ]
        return self._norm(torch.cat(halves, 1), params, parts[-1])

    def _convolutions(
        self, primitive: str, x: Tensor, params: dict[str, Tensor], parts: tuple[Layer, ...]
    ) -> Tensor:
        dilation = 2 if primitive.startswith("dil") else 1
        stride = self.stride
        for layer in parts:
            if isinstance(layer, BatchNorm):
                x = self._norm(x, params, layer)
                continue
            weight = params[f"{layer.name}.weight"]
            if _is_depthwise(layer):
                pad = (weight.shape[-1] - 1) // 2 * dilation
                x = F.relu(x)
                x = F.conv2d(x, weight, None, stride, pad, dilation, groups=self.channels)
                stride = 1
            else:
                x = F.conv2d(x, weight)
        return x

    def _norm(self, x: Tensor, params: dict[str, Tensor], layer: Layer) -> Tensor:
        if self.running is not None:
            mean, var = self.running[len(self.stats)]
        else:
            mean = x.mean((0, 2, 3)) if x.shape[0] else x.new_zeros(self.channels)
            deviation = x - mean[:, None, None]
            var = deviation.square().mean((0, 2, 3)) if x.shape[0] else torch.zeros_like(mean)
        self.stats.append(torch.stack([mean, var]))
        scale = torch.rsqrt(var + self.eps)
        x = (x - mean[:, None, None]) * scale[:, None, None]
        if self.affine:
            weight, bias = params[f"{layer.name}.weight"], params[f"{layer.name}.bias"]
            x = x * weight[:, None, None] + bias[:, None, None]
        return x


def _is_depthwise(layer: Conv) -> bool:
    return layer.shape[-1] > 1
