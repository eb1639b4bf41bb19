"""Which of the kernels' operations a module is, by what it computes: no class names."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from metadnas_ext.fuse.expression import (
    PROBE_SIZE,
    Conv,
    Expr,
    Input,
    Joined,
    Norm,
    Padded,
    Pool,
    Relu,
    Shifted,
    Strided,
    Zeros,
    expression,
    scratch,
    unknown_part,
)

STEM_CHANNELS = 4
"""Up to so many input channels a 3x3 convolution is cheap as a product of patches."""
MOST_MODULES = 24
"""More modules than the largest candidate has: a network or a cell, not to be traced."""


@dataclass(frozen=True)
class Weight:
    """A convolution's weight, by its path below the module."""

    path: str


@dataclass(frozen=True)
class NormAt:
    """A batch norm, by its path below the module."""

    path: str


Part = Weight | NormAt


@dataclass(frozen=True)
class Candidate:
    """One of `PRIMITIVES` on `channels` channels (None: any); parts in the kernels' order."""

    primitive: str
    stride: int
    channels: int | None
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Block:
    """`ops.relu_conv_bn`, or with `kernel` 3 `ops.conv3x3_bn`; parts in the kernels' order."""

    channels_in: int
    channels_out: int
    parts: tuple[Part, ...]
    stride: int = 1
    relu: bool = True
    kernel: int = 1

    def __str__(self) -> str:
        convolution = f"{self.kernel}x{self.kernel} convolution"
        middle = "factorized reduce" if self.stride == 2 else convolution
        return f"{'ReLU, ' * self.relu}{middle}, batch norm"


def recognise(module: nn.Module) -> Candidate | Block | str:
    """What the kernels can do of `module`, or why they cannot."""
    copied = scratch(module)
    channels = _channels(module)
    try:
        train, evaluate = (expression(copied, channels, training) for training in (True, False))
    except Exception as error:  # the code is the user's: it may raise anything
        return f"called with one tensor it raises {type(error).__name__}: {_first_line(error)}"
    if train != evaluate:
        return "it computes something else in eval mode"
    found = _match(train, channels)
    if isinstance(found, str):
        return found
    return _unexplained(module, found) or found


def _match(expr: Expr, channels: int) -> Candidate | Block | str:
    match expr:
        case Input():
            return Candidate("skip_connect", 1, None)
        case Zeros(of=None | Input() | Strided(of=Input()), size=(height, width)) if (
            height == width and height in (PROBE_SIZE, PROBE_SIZE // 2)
        ):
            return Candidate("none", PROBE_SIZE // height, None)
        case Pool(of=Input()):
            return "a pool without batch norm"
        case Norm(of=Pool(of=Input(), kind=kind, stride=(1 | 2) as stride), norm=norm):
            return Candidate(kind, stride, channels, (NormAt(norm),))
        case Norm(of=Joined() as joined, norm=norm):
            return _factorized(joined, norm)
        case Norm(of=Conv(shape=(_, _, 3, 3)) as conv, norm=norm):
            return _stem(conv, norm)
        case Norm(of=Conv(of=Conv())):
            return _separable(expr)
        case Norm(of=Conv() as conv, norm=norm):
            return _pointwise(conv, norm)
    return _why_not(expr)


def _factorized(joined: Joined, norm: str) -> Candidate | Block | str:
    match joined.parts:
        case (
            Conv(of=Relu(of=Input()), stride=2, padding=0, groups=1) as first,
            Conv(of=Shifted(of=source), stride=2, padding=0, groups=1) as second,
        ) if first.shape == second.shape and first.shape[2:] == (1, 1):
            source = source.of if isinstance(source, Padded) else source
            if source != Relu(Input()):
                return "its two halves read different tensors"
            parts = (Weight(first.weight), Weight(second.weight), NormAt(norm))
            half, channels, *_ = first.shape
            if channels == 2 * half:
                return Candidate("skip_connect", 2, channels, parts)
            return Block(channels, 2 * half, parts, stride=2)
    return (
        _why_not(joined)
        if unknown_part(joined)
        else "it joins other parts than a factorized reduce"
    )


def _pointwise(conv: Conv, norm: str) -> Block | str:
    channels_out, channels_in, *kernel = conv.shape
    relu = conv.of == Relu(Input())
    if not relu and conv.of != Input():
        return _why_not(conv)
    if kernel != [1, 1] or (conv.stride, conv.padding, conv.groups) != (1, 0, 1):
        return f"a {kernel[0]}x{kernel[1]} convolution that the kernels do not have"
    parts = (Weight(conv.weight), NormAt(norm))
    return Block(channels_in, channels_out, parts, relu=relu)


def _stem(conv: Conv, norm: str) -> Block | str:
    channels_out, channels_in, *_ = conv.shape
    plain = (conv.stride, conv.padding, conv.dilation, conv.groups) == (1, 1, 1, 1)
    if conv.of != Input() or not plain or channels_in > STEM_CHANNELS:
        return "a 3x3 convolution that the kernels do not have"
    parts = (Weight(conv.weight), NormAt(norm))
    return Block(channels_in, channels_out, parts, relu=False, kernel=3)


@dataclass(frozen=True)
class _Half:
    """ReLU, depthwise convolution, pointwise convolution, batch norm."""

    channels: int
    kernel: int
    stride: int
    dilation: int
    parts: tuple[Part, ...]


def _separable(expr: Expr) -> Candidate | str:
    halves: list[_Half] = []
    while not isinstance(expr, Input):
        half = _half(expr)
        if half is None:
            return _why_not(expr)
        halves.insert(0, half)
        assert isinstance(expr, Norm)
        assert isinstance(expr.of, Conv)
        assert isinstance(expr.of.of, Conv)
        relu = expr.of.of.of
        expr = relu.of if isinstance(relu, Relu) else relu
    first, *rest = halves
    if first.kernel not in (3, 5) or first.stride not in (1, 2):
        return f"a {first.kernel}x{first.kernel} convolution of stride {first.stride}"
    parts = tuple(part for half in halves for part in half.parts)
    if first.dilation == 2 and not rest:
        return Candidate(
            f"dil_conv_{first.kernel}x{first.kernel}", first.stride, first.channels, parts
        )
    again = _Half(first.channels, first.kernel, 1, 1, rest[0].parts) if rest else None
    if first.dilation == 1 and rest == [again]:
        return Candidate(
            f"sep_conv_{first.kernel}x{first.kernel}", first.stride, first.channels, parts
        )
    return f"{len(halves)} separable convolutions in an arrangement that the kernels do not have"


def _half(expr: Expr) -> _Half | None:
    match expr:
        case Norm(
            of=Conv(
                of=Conv(of=Relu()) as deep, stride=1, padding=0, groups=1, shape=(_, _, 1, 1)
            ) as point,
            norm=norm,
        ):
            channels, _, kernel, _ = deep.shape
            one = point.shape[:2] == (channels, channels) and deep.shape[1] == 1
            if not one or deep.groups != channels:
                return None
            if deep.padding != deep.dilation * (kernel // 2):
                return None
            parts = (Weight(deep.weight), Weight(point.weight), NormAt(norm))
            return _Half(channels, kernel, deep.stride, deep.dilation, parts)
    return None


def _why_not(expr: Expr) -> str:
    unknown = unknown_part(expr)
    return unknown.what if unknown else "an arrangement of layers that the kernels do not have"


def _unexplained(module: nn.Module, found: Candidate | Block) -> str | None:
    """State of the module that the operation would not look at."""
    weights = {part.path for part in found.parts if isinstance(part, Weight)}
    norms = tuple(f"{part.path}." for part in found.parts if isinstance(part, NormAt))
    for name, _ in (*module.named_parameters(), *module.named_buffers()):
        if name not in weights and not (norms and name.startswith(norms)):
            return f"its tensor {name!r} has no part in the operation"
    return None


def _channels(module: nn.Module) -> int:
    """Input channels that the module's first layer asks for; any number where none does."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            return layer.in_channels
        if isinstance(layer, nn.BatchNorm2d):
            return layer.num_features
    return 4


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:100]
