"""Inputs of ReLU, 1x1 convolution and batch norm, ways to run it, and torch.nn's result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from metadnas_ext.ops import reference_layers, relu_conv_bn

Op = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    x: Tensor
    params: Tensor
    grad_out: Tensor
    channels: int
    stride: int = 1
    relu: bool = True
    affine: bool = False
    running: Tensor | None = None
    counts: Tensor | None = None
    eps: float = 1e-5

    @property
    def options(self) -> dict[str, object]:
        names = ("channels", "stride", "relu", "affine", "running", "counts", "eps")
        return {name: getattr(self, name) for name in names}

    def tensors(self) -> dict[str, Tensor]:
        """The floating tensors, by field."""
        names = ("x", "params", "grad_out", "running")
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
    grad_params: Tensor

    def client(self, g: int, images: int | None = None) -> Result:
        parts = (part[g : g + 1] for part in self)
        out, stats, grad_x, grad_params = parts
        return Result(out[:, :images], stats, grad_x[:, :images], grad_params)


def make_case(
    shape: Sequence[int] = (1, 2, 5, 6, 4),
    channels: int = 6,
    *,
    stride: int = 1,
    relu: bool = True,
    affine: bool = False,
    training: bool = True,
    counts: Sequence[int] | None = None,
    mean: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Case:
    """Random inputs for x of shape (G, N, H, W, Cin), made in float64."""
    clients, images, height, width, channels_in = shape
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    running = normal(clients, 1, 2, channels)
    running[:, :, 1] = running[:, :, 1].abs() + 0.5
    case = Case(
        x=normal(*shape) + mean,
        params=normal(clients, channels * channels_in + (2 * channels if affine else 0)),
        grad_out=normal(clients, images, -(-height // stride), -(-width // stride), channels),
        channels=channels,
        stride=stride,
        relu=relu,
        affine=affine,
        running=None if training else running,
        counts=None if counts is None else torch.tensor(counts),
    )
    return case.to(dtype)


def run(case: Case, op: Op = relu_conv_bn) -> Result:
    """Output, statistics and gradients of x and params."""
    leaves = [t.detach().requires_grad_() for t in (case.x, case.params)]
    out, stats = op(*leaves, **case.options)
    grads = torch.autograd.grad(out, leaves, case.grad_out)
    return Result(out.detach(), stats.detach(), *grads)


def twin(x: Tensor, params: Tensor, channels: int, **options: object) -> tuple[Tensor, Tensor]:
    """`reference_layers.relu_conv_bn` with the signature of `relu_conv_bn`."""
    names = ("stride", "relu", "affine", "eps")
    rest = (options[name] for name in names)
    return reference_layers.relu_conv_bn(
        x, params, options["running"], options["counts"], channels, *rest
    )


class Block(nn.Module):
    """DARTS' ReLUConvBN, or at stride 2 its FactorizedReduce; zeros behind an odd size."""

    def __init__(self, channels_in: int, case: Case) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels_in, case.channels // case.stride, 1, case.stride, bias=False)
            for _ in range(case.stride)
        )
        self.relu = case.relu
        self.norm = nn.BatchNorm2d(case.channels, eps=case.eps, affine=case.affine)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x) if self.relu else x
        if len(self.convs) == 2:
            x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        self.z = torch.cat([conv(x[:, :, i:, i:]) for i, conv in enumerate(self.convs)], 1)
        return self.norm(self.z)

    def statistics(self) -> Tensor:
        if self.norm.training:
            var, mean = torch.var_mean(self.z.detach(), (0, 2, 3), correction=0)
        else:
            mean, var = self.norm.running_mean, self.norm.running_var
        return torch.stack([mean, var])[None]


def truth(case: Case) -> Result:
    """The same of torch.nn modules, each client alone on the images that count."""
    per_client = [_truth_of_client(case, g) for g in range(case.x.shape[0])]
    return Result(*map(torch.stack, zip(*per_client, strict=True)))


def _truth_of_client(case: Case, g: int) -> Result:
    images = case.x.shape[1]
    used = images if case.counts is None else int(case.counts[g])
    if used == 0:
        stats = case.x.new_zeros(1, 2, case.channels) if case.running is None else case.running[g]
        zeros = map(torch.zeros_like, (case.x[g], case.params[g]))
        return Result(torch.zeros_like(case.grad_out[g]), stats, *zeros)
    block = Block(case.x.shape[-1], case).to(case.x.dtype)
    vector_to_parameters(case.params[g], block.parameters())
    if case.running is not None:
        block.eval()
        block.norm.running_mean, block.norm.running_var = case.running[g, 0]
    x = case.x[g, :used].permute(0, 3, 1, 2).contiguous().requires_grad_()
    out = block(x)
    grad_out = case.grad_out[g, :used].permute(0, 3, 1, 2)
    grad_x, *grads = torch.autograd.grad(out, [x, *block.parameters()], grad_out)
    unused = (0, 0) * 3 + (0, images - used)
    return Result(
        F.pad(out.detach().permute(0, 2, 3, 1), unused),
        block.statistics(),
        F.pad(grad_x.permute(0, 2, 3, 1), unused),
        parameters_to_vector(grads),
    )


def assert_same(actual: Result, expected: Result, tolerance: float = 1e-10) -> None:
    """Each part equal up to `tolerance` times the largest magnitude in that part (at least 1)."""
    for name, a, e in zip(Result._fields, actual, expected, strict=True):
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
