"""Candidate operations by name: those of the kernels, and ordinary modules beside them."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from metadnas_ext.errors import ConfigError, UnknownPrimitiveError
from metadnas_ext.space.bench_modules import avg_pool, relu_conv_bn
from metadnas_ext.space.modules import ModuleTemplate
from metadnas_ext.space.primitives import PRIMITIVES, Part, layers, parts_cost

Factory = Callable[[int, int, bool], nn.Module]
"""(channels, stride, affine) -> module, as the entries of the public DARTS code's `OPS`."""
MACs = Callable[[int, int, int], int]
"""(channels, stride, size) -> multiply-accumulates for one image of size x size pixels."""


class Candidate(Protocol):
    """One operation that an edge may apply."""

    @property
    def name(self) -> str: ...

    def parts(self, channels: int, stride: int, affine: bool = False) -> tuple[Part, ...]:
        """Parameters and batch norms, by names relative to the candidate."""

    def cost(self, channels: int, stride: int, size: int, unit: str, affine: bool = False) -> int:
        """Weights ("params") or multiply-accumulates ("macs") on size x size input pixels."""


@dataclass(frozen=True)
class FusedCandidate:
    """An operation the kernels know: one of `PRIMITIVES`."""

    name: str

    def parts(self, channels: int, stride: int, affine: bool = False) -> tuple[Part, ...]:
        return layers(self.name, channels, stride, affine)

    def cost(self, channels: int, stride: int, size: int, unit: str, affine: bool = False) -> int:
        # The first layer strides, so all of a candidate runs at the node's resolution.
        pixels = math.ceil(size / stride) ** 2
        return parts_cost(self.parts(channels, stride, affine), pixels, unit)


@dataclass(frozen=True)
class ModuleCandidate:
    """An ordinary module, run unfused beside the kernels."""

    name: str
    factory: Factory
    macs: MACs | None = None

    def parts(self, channels: int, stride: int, affine: bool = False) -> tuple[Part, ...]:
        return self.template(channels, stride, affine).parts

    def cost(self, channels: int, stride: int, size: int, unit: str, affine: bool = False) -> int:
        counted = self.template(channels, stride, affine).cost(size, unit)
        if unit == "params" or self.macs is None:
            return counted
        return self.macs(channels, stride, size)

    def template(self, channels: int, stride: int, affine: bool = False) -> ModuleTemplate:
        return _template(self, channels, stride, affine)


FUSED: dict[str, Candidate] = {name: FusedCandidate(name) for name in PRIMITIVES}

NAS_BENCH_201: dict[str, Candidate] = {
    "none": FUSED["none"],
    "skip_connect": FUSED["skip_connect"],
    "nor_conv_1x1": ModuleCandidate("nor_conv_1x1", functools.partial(relu_conv_bn, 1)),
    "nor_conv_3x3": ModuleCandidate("nor_conv_3x3", functools.partial(relu_conv_bn, 3)),
    "avg_pool_3x3": ModuleCandidate("avg_pool_3x3", avg_pool),
}
"""The candidates of NAS-Bench-201 in its order; its average pooling has no batch norm."""

_registered: dict[str, ModuleCandidate] = {}


def register_primitive(name: str, factory: Factory, macs: MACs | None = None) -> None:
    """Adds a candidate operation of your own to every search space.

    It is then a name for `space.candidates`, genotypes and cost tables like any other, and runs as
    ordinary PyTorch beside the fused candidates of its edge.

    Args:
        name: lower-case letters, digits and underscores; the name in genotypes.
        factory: (channels, stride, affine) -> nn.Module that turns (N, channels, H, W) into
            (N, channels, ceil(H / stride), ceil(W / stride)); `affine` is for its batch norms. It
            must be a pure function of input, parameters and batch statistics: batch norms keep
            running statistics, other buffers stay constant, nothing is random.
        macs: (channels, stride, size) -> multiply-accumulates for one image of size x size pixels.
            None: the module's convolutions, linear layers and matrix products are counted.

    The same function or class of the same module replaces its earlier self, as when a notebook's
    cell runs again. Raises ConfigError on a name that is malformed or taken.
    """
    if re.fullmatch(r"[a-z][a-z0-9_]*", name) is None:
        raise ConfigError(
            f"a primitive's name has lower-case letters, digits and underscores, got {name!r}"
        )
    old = _registered.get(name)
    if name in FUSED or name in NAS_BENCH_201 or (old and _origin(old.factory) != _origin(factory)):
        raise ConfigError(f"the primitive {name!r} exists already")
    _registered[name] = ModuleCandidate(name, factory, macs)


def registered() -> dict[str, Candidate]:
    """What `register_primitive` added, by name, in that order."""
    return dict(_registered)


def candidate(name: str, own: Mapping[str, Candidate]) -> Candidate:
    """A space's own candidate of that name, or the registered one.

    Raises UnknownPrimitiveError on another name, listing the known ones.
    """
    known = {**own, **_registered}
    if name not in known:
        raise UnknownPrimitiveError(
            f"unknown primitive {name!r}; known: {', '.join(known)} "
            f"(others have to be registered first: register_primitive, --import)"
        )
    return known[name]


def _origin(factory: Factory) -> object:
    """Where a factory is defined; of one without a name, itself."""
    name = getattr(factory, "__qualname__", None)
    return factory if name is None else (factory.__module__, name)


@functools.cache
def _template(
    candidate: ModuleCandidate, channels: int, stride: int, affine: bool
) -> ModuleTemplate:
    what = f"primitive {candidate.name!r}"
    return ModuleTemplate(
        lambda: candidate.factory(channels, stride, affine), channels, channels, stride, what
    )
