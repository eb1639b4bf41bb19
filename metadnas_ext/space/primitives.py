"""The candidate operations of the DARTS search space: names, parameters, batch norms.

Order and definitions follow Liu et al., "DARTS: Differentiable Architecture Search" (ICLR 2019), so
published genotypes and state dicts load. Everything else (packing, parameter names, costs, kernels)
is derived from `layers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

PRIMITIVES: tuple[str, ...] = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""All candidates; a kernel knows a candidate by its index here."""

STRIDES = (1, 2)


@dataclass(frozen=True)
class Conv:
    """A bias-free convolution: `name.weight` of shape (out, in / groups, kernel, kernel)."""

    name: str
    shape: tuple[int, int, int, int]

    @property
    def macs_per_pixel(self) -> int:
        """Multiply-accumulates for one output position."""
        return prod(self.shape)


@dataclass(frozen=True)
class BatchNorm:
    """A batch norm over `channels`; `affine` adds `name.weight` and `name.bias`."""

    name: str
    channels: int
    affine: bool


@dataclass(frozen=True)
class Weight:
    """A parameter of an ordinary module, by its own name."""

    name: str
    shape: tuple[int, ...]


Layer = Conv | BatchNorm
"""What the kernels are made of."""
Part = Layer | Weight
"""What a network is made of."""


def layers(primitive: str, channels: int, stride: int, affine: bool = False) -> tuple[Layer, ...]:
    """Layers of one candidate on `channels` channels, in the order of its parameters.

    Names are relative to the candidate, as in the public DARTS modules (`op.1.weight`, `bn`, ...).
    Raises ValueError on an unknown primitive, a stride other than 1 or 2, channels < 1, or a
    stride-2 skip (factorized reduce) on an odd number of channels.
    """
    check_primitive(primitive)
    if stride not in STRIDES:
        raise ValueError(f"stride must be 1 or 2, got {stride}")
    if channels < 1:
        raise ValueError(f"channels must be at least 1, got {channels}")
    if primitive == "none" or (primitive == "skip_connect" and stride == 1):
        return ()
    if primitive in ("max_pool_3x3", "avg_pool_3x3"):
        return (BatchNorm("1", channels, affine),)
    if primitive == "skip_connect":
        return factorized_reduce(channels, channels, affine)
    kernel = int(primitive[-1])
    halves = 2 if primitive.startswith("sep") else 1
    result: list[Layer] = []
    for half in range(halves):
        first = 1 + 4 * half  # relu, depthwise, pointwise, bn
        result.append(Conv(f"op.{first}", (channels, 1, kernel, kernel)))
        result.append(Conv(f"op.{first + 1}", (channels, channels, 1, 1)))
        result.append(BatchNorm(f"op.{first + 2}", channels, affine))
    return tuple(result)


def factorized_reduce(channels_in: int, channels_out: int, affine: bool) -> tuple[Layer, ...]:
    """ReLU, two stride-2 1x1 convolutions on shifted grids, concatenation, batch norm."""
    if channels_out % 2:
        raise ValueError(
            f"a stride-2 skip_connect (factorized reduce) needs an even number of channels, "
            f"got {channels_out}"
        )
    half = channels_out // 2
    return (
        Conv("conv_1", (half, channels_in, 1, 1)),
        Conv("conv_2", (half, channels_in, 1, 1)),
        BatchNorm("bn", channels_out, affine),
    )


def relu_conv_bn(channels_in: int, channels_out: int, affine: bool) -> tuple[Layer, ...]:
    """ReLU, 1x1 convolution, batch norm."""
    return (
        Conv("op.1", (channels_out, channels_in, 1, 1)),
        BatchNorm("op.2", channels_out, affine),
    )


def parameter_shapes(parts: tuple[Part, ...]) -> dict[str, tuple[int, ...]]:
    """Parameter names and shapes of `parts` in packing order, without a client axis."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in parts:
        if isinstance(layer, Conv):
            shapes[f"{layer.name}.weight"] = layer.shape
        elif isinstance(layer, Weight):
            shapes[layer.name] = layer.shape
        elif layer.affine:
            shapes[f"{layer.name}.weight"] = (layer.channels,)
            shapes[f"{layer.name}.bias"] = (layer.channels,)
    return shapes


def parts_cost(parts: tuple[Part, ...], pixels: int, unit: str) -> int:
    """Weights of `parts` ("params"), or the multiply-accumulates ("macs") of its `Conv` layers.

    `pixels`: output positions of every convolution.
    """
    if unit == "params":
        return sum(prod(shape) for shape in parameter_shapes(parts).values())
    return sum(part.macs_per_pixel * pixels for part in parts if isinstance(part, Conv))


def check_primitive(primitive: str) -> int:
    """Index of `primitive` in PRIMITIVES, or a ValueError that lists them."""
    try:
        return PRIMITIVES.index(primitive)
    except ValueError:
        known = ", ".join(PRIMITIVES)
        raise ValueError(f"unknown primitive {primitive!r}; known: {known}") from None
