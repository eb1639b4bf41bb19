"""What a module computes, as an expression: one run on a probe, each torch call recorded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

PROBE_SIZE = 8
"""Height and width of the probe: even, so that strides of 2 fit the public factorized reduce."""


@dataclass(frozen=True)
class Input:
    """The probe."""


@dataclass(frozen=True)
class Relu:
    of: Expr


@dataclass(frozen=True)
class Conv:
    """`weight`: path of the parameter below the module; `shape`: its own."""

    of: Expr
    weight: str
    shape: tuple[int, ...]
    stride: int
    padding: int
    dilation: int
    groups: int


@dataclass(frozen=True)
class Norm:
    """`norm`: path of the `BatchNorm2d` below the module."""

    of: Expr
    norm: str


@dataclass(frozen=True)
class Pool:
    """3x3 pooling, padded by 1; an average counts only pixels of the image."""

    of: Expr
    kind: str
    stride: int


@dataclass(frozen=True)
class Shifted:
    """[:, :, 1:, 1:], with or without zeros put behind first."""

    of: Expr


@dataclass(frozen=True)
class Padded:
    """A row and a column of zeros behind."""

    of: Expr


@dataclass(frozen=True)
class Strided:
    """[:, :, ::step, ::step]"""

    of: Expr


@dataclass(frozen=True)
class Zeros:
    """Zeros of (height, width) pixels; `of`: what was multiplied by 0."""

    of: Expr | None
    size: tuple[int, ...]


@dataclass(frozen=True)
class Joined:
    """Concatenated along the channels."""

    parts: tuple[Expr, ...]


@dataclass(frozen=True)
class Other:
    """Anything else, in words."""

    what: str


Expr = Input | Relu | Conv | Norm | Pool | Shifted | Padded | Strided | Zeros | Joined | Other


def expression(module: nn.Module, channels: int, training: bool) -> Expr:
    """The result of `module` on a probe (2, channels, 8, 8), in training or eval mode.

    `module` is a copy that nobody needs: hooks are put on it and batch norms take their step.
    Whatever it raises passes through.
    """
    module.train(training)
    state = (*module.parameters(), *module.buffers(), torch.zeros(()))
    like = next(t for t in state if t.is_floating_point())
    probe = torch.randn(2, channels, PROBE_SIZE, PROBE_SIZE).to(like)
    recorder = _Recorder(module, probe)
    with torch.no_grad(), recorder:
        result = module(probe)
    if not isinstance(result, Tensor):
        return Other(f"its result is a {type(result).__name__}, not a tensor")
    found = recorder.of(result)
    if unknown_part(found) is None and recorder.recorded != len(set(_nodes(found))):
        return Other("it computes more than its result shows")
    return found


def scratch(module: nn.Module) -> nn.Module:
    """A copy without gradients, for `expression`."""
    return copy.deepcopy(module).requires_grad_(False)


def unknown_part(expr: Expr) -> Other | None:
    """The first part of the expression that has no name here."""
    if isinstance(expr, Other):
        return expr
    return next((found for part in _parts(expr) if (found := unknown_part(part))), None)


def _parts(expr: Expr) -> tuple[Expr, ...]:
    if isinstance(expr, Joined):
        return expr.parts
    inner = getattr(expr, "of", None)
    return () if inner is None else (inner,)


def _nodes(expr: Expr) -> Iterable[int]:
    """Identities of the expression's nodes but the probe."""
    if not isinstance(expr, Input):
        yield id(expr)
        for part in _parts(expr):
            yield from _nodes(part)


class _Recorder(TorchFunctionMode):
    """Follows tensors from the probe on, call by call."""

    def __init__(self, module: nn.Module, probe: Tensor) -> None:
        super().__init__()
        self.recorded = 0
        self._known: dict[int, Expr] = {id(probe): Input()}
        self._alive: list[Any] = [probe]  # an id is a name only while its tensor lives
        self._weights = {id(t): (name, t) for name, t in module.named_parameters()}
        self._counters = {id(t) for name, t in module.named_buffers() if t.dtype == torch.int64}
        self._running: list[str] = []  # paths of the modules that are at work
        for name, child in module.named_modules():
            child.register_forward_pre_hook(self._entering(name))
            child.register_forward_hook(self._leaving)
        self._modules = dict(module.named_modules())

    def of(self, tensor: Any) -> Expr:
        return self._known.get(id(tensor), Other("part of it does not come from its input"))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and id(result) not in self._counters:
            expr = self._interpret(getattr(func, "__name__", str(func)), result, args, kwargs)
            if args and result is args[0] and isinstance(self.of(result), Input):
                expr = Other("it changes its input in place")
            self._known[id(result)] = expr
            self._alive.append(result)
        return result

    def _interpret(
        self, name: str, result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Expr:
        if name in _ALIASES and args and id(args[0]) in self._known:
            return self.of(args[0])
        self.recorded += 1
        handler = _HANDLERS.get(name)
        if handler is None:
            return Other(_WORDS.get(name, f"it calls {name}"))
        try:
            return handler(self, result, *args, **kwargs)
        except TypeError:  # a signature nobody uses
            return Other(f"it calls {name} with arguments of its own")

    def _entering(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._running.append(name)

        return hook

    def _leaving(self, *_: Any) -> None:
        self._running.pop()

    # One method a call, with torch's own names of its arguments.

    def _relu(self, result: Tensor, input: Any, inplace: bool = False) -> Expr:
        return Relu(self.of(input))

    def _conv2d(
        self,
        result: Tensor,
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Expr:
        if bias is not None:
            return Other("a convolution has a bias")
        if id(weight) not in self._weights:
            return Other("a convolution's weight is not a parameter")
        settings = [_single(value) for value in (stride, padding, dilation)]
        name, tensor = self._weights[id(weight)]
        if None in settings or tensor.shape[2] != tensor.shape[3]:
            return Other("a convolution is not square")
        step, border, spread = (value for value in settings if value is not None)
        shape = tuple(tensor.shape)
        return Conv(self.of(input), name, shape, step, border, spread, groups)

    def _batch_norm(self, result: Tensor, input: Any, *_: Any, **__: Any) -> Expr:
        path = self._running[-1]
        if type(self._modules[path]).forward is not nn.BatchNorm2d.forward:
            return Other("a batch norm is not a torch.nn.BatchNorm2d")
        return Norm(self.of(input), path)

    def _max_pool2d(
        self,
        result: Tensor,
        input: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Expr:
        plain = _single(dilation) == 1 and not ceil_mode
        return self._pool("max_pool_3x3", input, kernel_size, stride, padding, plain)

    def _avg_pool2d(
        self,
        result: Tensor,
        input: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: Any = None,
    ) -> Expr:
        plain = not ceil_mode and not count_include_pad and divisor_override is None
        return self._pool("avg_pool_3x3", input, kernel_size, stride, padding, plain)

    def _pool(
        self, kind: str, input: Any, kernel: Any, stride: Any, padding: Any, plain: bool
    ) -> Expr:
        step = _single(kernel if stride is None else stride)
        if not plain or _single(kernel) != 3 or _single(padding) != 1 or step is None:
            return Other("a pool is not 3x3 with padding 1 over the pixels of the image")
        return Pool(self.of(input), kind, step)

    def _getitem(self, result: Tensor, input: Any, index: Any) -> Expr:
        whole = slice(None)
        if index == (whole, whole, slice(1, None), slice(1, None)):
            return Shifted(self.of(input))
        if any(index == (whole, whole, *[slice(None, None, step)] * 2) for step in (1, 2)):
            return Strided(self.of(input))
        return Other("it cuts out a part of a tensor")

    def _pad(
        self, result: Tensor, input: Any, pad: Any, mode: str = "constant", value: Any = None
    ) -> Expr:
        if tuple(pad) == (0, 1, 0, 1) and mode == "constant" and not value:
            return Padded(self.of(input))
        return Other("it pads")

    def _mul(self, result: Tensor, input: Any, other: Any) -> Expr:
        if isinstance(other, Tensor) or other != 0:
            return Other("it multiplies")
        return Zeros(self.of(input), tuple(result.shape[2:]))

    def _zeros(self, result: Tensor, *_: Any, **__: Any) -> Expr:
        return Zeros(None, tuple(result.shape[2:]))

    def _zeros_like(self, result: Tensor, input: Any, **_: Any) -> Expr:
        return Zeros(self.of(input), tuple(result.shape[2:]))

    def _cat(self, result: Tensor, tensors: Any, dim: int = 0) -> Expr:
        if dim not in (1, -3):
            return Other("it concatenates along another dimension than the channels")
        return Joined(tuple(self.of(tensor) for tensor in tensors))


_ALIASES = {"contiguous", "to", "type_as", "float", "double", "cpu", "cuda"}
_WORDS = {
    "dropout": "it has dropout",
    "dropout2d": "it has dropout",
    "group_norm": "it has group norm",
    "layer_norm": "it has layer norm",
    "rand": "it draws random numbers",
    "bernoulli_": "it draws random numbers",
}
_HANDLERS: dict[str, Callable[..., Expr]] = {
    "relu": _Recorder._relu,
    "relu_": _Recorder._relu,
    "conv2d": _Recorder._conv2d,
    "batch_norm": _Recorder._batch_norm,
    "max_pool2d": _Recorder._max_pool2d,
    "avg_pool2d": _Recorder._avg_pool2d,
    "__getitem__": _Recorder._getitem,
    "pad": _Recorder._pad,
    "mul": _Recorder._mul,
    "zeros": _Recorder._zeros,
    "zeros_like": _Recorder._zeros_like,
    "new_zeros": _Recorder._zeros,
    "cat": _Recorder._cat,
}


def _single(value: Any) -> int | None:
    """k of k or (k, k); None of anything else."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return values[0] if len(set(values)) == 1 and isinstance(values[0], int) else None
