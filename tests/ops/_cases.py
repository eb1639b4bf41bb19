"""Inputs of the mixed operation, ways to run it, and comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from metadnas_ext.ops import batch_norms, mixed_op, packed_shapes, reference
from metadnas_ext.space.primitives import PRIMITIVES

from . import _truth

Op = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    x: Tensor
    weights: Tensor
    params: Tensor
    grad_out: Tensor
    candidates: tuple[str, ...] = PRIMITIVES
    stride: int = 1
    affine: bool = False
    running: Tensor | None = None
    counts: Tensor | None = None
    eps: float = 1e-5
    keep: str = "all"

    @property
    def options(self) -> dict[str, object]:
        names = ("candidates", "stride", "affine", "running", "counts", "eps", "keep")
        return {name: getattr(self, name) for name in names}

    @property
    def indices(self) -> list[int]:
        return [PRIMITIVES.index(name) for name in self.candidates]

    def tensors(self) -> dict[str, Tensor]:
        """The floating tensors, by field."""
        names = ("x", "weights", "params", "grad_out", "running")
        return {n: t for n in names if (t := getattr(self, n)) is not None}

    def to(self, dtype: torch.dtype) -> Case:
        return replace(self, **{name: t.to(dtype) for name, t in self.tensors().items()})

    def client(self, g: int, images: int | None = None) -> Case:
        """Client g alone, with its first `images` images and no counts."""
        alone = {name: t[g : g + 1] for name, t in self.tensors().items()}
        alone["x"], alone["grad_out"] = alone["x"][:, :images], alone["grad_out"][:, :images]
        return replace(self, **alone, counts=None)


class Result(NamedTuple):
    out: Tensor
    stats: Tensor
    grad_x: Tensor
    grad_weights: Tensor
    grad_params: Tensor


def usable(channels: int, stride: int) -> tuple[str, ...]:
    """All candidates but a factorized reduce of an odd number of channels."""
    skip = stride == 1 or channels % 2 == 0
    return tuple(p for p in PRIMITIVES if p != "skip_connect" or skip)


def make_case(
    shape: Sequence[int] = (1, 2, 5, 6, 4),
    candidates: Sequence[str] | None = None,
    *,
    stride: int = 1,
    affine: bool = False,
    training: bool = True,
    counts: Sequence[int] | None = None,
    keep: str = "all",
    mean: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Case:
    """Random inputs for x of shape (G, N, H, W, C), made in float64."""
    clients, images, height, width, channels = shape
    names = usable(channels, stride) if candidates is None else tuple(candidates)
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    parameters = sum(
        torch.Size(s).numel() for s in packed_shapes(names, channels, stride, affine).values()
    )
    norms = len(batch_norms(names, channels, stride))
    running = normal(clients, norms, 2, channels)
    running[:, :, 1] = running[:, :, 1].abs() + 0.5
    case = Case(
        x=normal(*shape) + mean,
        weights=normal(clients, len(names)),
        params=normal(clients, parameters),
        grad_out=normal(clients, images, -(-height // stride), -(-width // stride), channels),
        candidates=names,
        stride=stride,
        affine=affine,
        running=None if training else running,
        counts=None if counts is None else torch.tensor(counts),
        keep=keep,
    )
    return case.to(dtype)


def run(case: Case, op: Op = mixed_op) -> Result:
    """Output, statistics and gradients of x, weights and params, in the layout they have."""
    leaves = [t.detach().requires_grad_() for t in (case.x, case.weights, case.params)]
    out, stats = op(*leaves, **case.options)
    grads = torch.autograd.grad(out, leaves, case.grad_out, materialize_grads=True)
    return Result(out.detach(), stats.detach(), *grads)


def twin(
    x: Tensor,
    weights: Tensor,
    params: Tensor,
    *,
    candidates: Sequence[str],
    stride: int,
    affine: bool,
    running: Tensor | None,
    counts: Tensor | None,
    eps: float,
    keep: str,
) -> tuple[Tensor, Tensor]:
    """`reference.mixed_op` with the signature of `mixed_op`."""
    indices = [PRIMITIVES.index(name) for name in candidates]
    return reference.mixed_op(x, weights, params, running, counts, indices, stride, affine, eps)


def truth(case: Case) -> Result:
    """The same of torch.nn modules, each client alone on the images that count."""
    per_client = [_truth_of_client(case, g) for g in range(case.x.shape[0])]
    return Result(*map(torch.stack, zip(*per_client, strict=True)))


def _truth_of_client(case: Case, g: int) -> Result:
    images = case.x.shape[1]
    used = images if case.counts is None else int(case.counts[g])
    norms = len(batch_norms(case.candidates, case.x.shape[-1], case.stride))
    running = None if case.running is None else case.running[g]
    if used == 0:
        return Result(
            torch.zeros_like(case.grad_out[g]),
            case.x.new_zeros(norms, 2, case.x.shape[-1]) if running is None else running,
            *map(torch.zeros_like, (case.x[g], case.weights[g], case.params[g])),
        )
    out, stats, grad_x, *grads = _truth.run_client(
        case.x[g, :used],
        case.weights[g],
        case.params[g],
        running,
        case.grad_out[g, :used],
        case.candidates,
        case.stride,
        case.affine,
        case.eps,
    )
    unused = (0, 0) * 3 + (0, images - used)
    pad = torch.nn.functional.pad
    return Result(pad(out, unused), stats, pad(grad_x, unused), *grads)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """L2 norm of the difference over that of `expected`."""
    expected = expected.double()
    scale = expected.norm().clamp_min(1e-30)
    return float((actual.double() - expected).norm() / scale)


def assert_same(actual: Result, expected: Result, tolerance: float = 1e-10) -> None:
    """Each part equal up to `tolerance` times the largest magnitude in that part (at least 1)."""
    for name, a, e in zip(Result._fields, actual, expected, strict=True):
        assert a.shape == e.shape, f"{name}: {tuple(a.shape)} instead of {tuple(e.shape)}"
        finite = e[e.isfinite()].abs()
        scale = max(1.0, float(finite.max()) if finite.numel() else 0.0)
        torch.testing.assert_close(
            a.double(),
            e.double(),
            rtol=0,
            atol=tolerance * scale,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def assert_identical(actual: Result, expected: Result) -> None:
    for name, a, e in zip(Result._fields, actual, expected, strict=True):
        assert torch.equal(a, e), f"{name} differs by {float((a - e).abs().max()):.1e}"
