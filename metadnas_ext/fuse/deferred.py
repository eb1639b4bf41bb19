"""Results of candidates that wait to be summed, so that one operator makes the whole sum.

In a scope a fused candidate returns a `Deferred` instead of a tensor. It can be weighted and added
like one; whatever else is done with it turns it into the tensor first. So any code around the
candidates runs unchanged: which it calls, how it weights them, what it does with the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from metadnas_ext.fuse import evaluate
from metadnas_ext.fuse.scope import Call, Scope

Weight = Tensor | float
"""A mixing weight; tensors have one element."""


class Lazy:
    """A tensor still to be made."""

    def __init__(self) -> None:
        self._value: Tensor | None = None

    def tensor(self) -> Tensor:
        if self._value is None:
            self._value = self._make()
        return self._value

    def _make(self) -> Tensor:
        raise NotImplementedError

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        handler = _HANDLERS.get(getattr(func, "__name__", ""))
        if handler is not None:
            try:
                result = handler(*args, **kwargs)
            except TypeError:  # arguments that only torch knows
                result = None
            if result is not None:
                return result
        return func(*settle(args), **settle(kwargs))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.tensor(), name)

    def __add__(self, other: Any) -> Any:
        return torch.add(self, other)  # type: ignore[call-overload]

    def __mul__(self, other: Any) -> Any:
        return torch.mul(self, other)  # type: ignore[arg-type]

    def __getitem__(self, index: Any) -> Tensor:
        return self.tensor()[index]

    def __len__(self) -> int:
        return len(self.tensor())

    __radd__ = __add__
    __rmul__ = __mul__


def _delegate(name: str) -> Callable[..., Any]:
    def method(self: Lazy, *args: Any) -> Any:
        return getattr(self.tensor(), name)(*settle(args))

    return method


_ARITHMETIC = ("sub", "rsub", "truediv", "rtruediv", "pow", "matmul", "neg")
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
for _name in (*_ARITHMETIC, *_COMPARISONS, "iter"):
    setattr(Lazy, f"__{_name}__", _delegate(f"__{_name}__"))


class Deferred(Lazy):
    """Sum of weighted calls and of tensors."""

    def __init__(
        self,
        scope: Scope,
        terms: list[tuple[Call, Weight]],
        addends: list[Tensor],
        shape: torch.Size,
    ) -> None:
        super().__init__()
        self.scope = scope
        self.terms = terms
        self.addends = addends
        self.shape = shape

    @property
    def waiting(self) -> bool:
        return self._value is None

    def settle_as(self, value: Tensor) -> None:
        """The tensor, made as a part of something larger."""
        self._value = value

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return len(self.shape)

    def scaled(self, weight: Any) -> Deferred | None:
        """None if `weight` is not a single number, or this sum has been made already."""
        known = self._value is not None or not self.scope.open()
        if known or not _is_weight(weight):
            return None
        factor = weight.squeeze() if isinstance(weight, Tensor) and weight.dim() else weight
        terms = [(call, _product(own, factor)) for call, own in self.terms]
        addends = [factor * addend for addend in self.addends]
        return Deferred(self.scope, terms, addends, self.shape)

    def plus(self, other: Any) -> Deferred | None:
        """None if `other` is neither 0 nor of this shape, or this sum has been made already."""
        if self._value is not None or not self.scope.open():
            return None
        if isinstance(other, int | float):
            return self if other == 0 else None
        if other.shape != self.shape:
            return None
        if isinstance(other, Deferred) and other.waiting:
            terms, addends = other.terms, other.addends
        else:
            terms, addends = [], [settle(other)]
        return Deferred(self.scope, self.terms + terms, self.addends + addends, self.shape)

    def _make(self) -> Tensor:
        if self.scope.open():
            return evaluate.evaluate(self)
        with self.scope.as_at_start():
            return evaluate.evaluate(self)


class Stacked(Lazy):
    """torch.stack(parts): weighted with one number a part and summed, it is a `Deferred` again."""

    def __init__(self, parts: list[Any]) -> None:
        super().__init__()
        self.parts = parts

    def size(self, dim: int | None = None) -> Any:
        shape = torch.Size((len(self.parts), *self.parts[0].shape))
        return shape if dim is None else shape[dim]

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.size())

    def dim(self) -> int:
        return len(self.size())

    def scaled(self, weights: Any) -> Stacked | None:
        """weights (O, 1, 1, 1, 1): one number a part."""
        alike = isinstance(weights, Tensor) and weights.shape == (len(self.parts), 1, 1, 1, 1)
        if not alike:
            return None
        pairs = zip(weights.flatten().unbind(), self.parts, strict=True)
        return Stacked([weight * part for weight, part in pairs])

    def summed(self) -> Any:
        first, *rest = self.parts
        return sum(rest, start=first)

    def _make(self) -> Tensor:
        return torch.stack([settle(part) for part in self.parts])


def settle(value: Any) -> Any:
    """`value` with tensors in place of what is still to be made, also inside containers."""
    if isinstance(value, Lazy):
        return value.tensor()
    if type(value) in (tuple, list):
        return type(value)(settle(item) for item in value)
    if type(value) is dict:
        return {key: settle(item) for key, item in value.items()}
    return value


def _add(input: Any, other: Any) -> Any:
    one, two = (input, other) if isinstance(input, Deferred) else (other, input)
    return one.plus(two) if isinstance(one, Deferred) else None


def _mul(input: Any, other: Any) -> Any:
    one, two = (input, other) if isinstance(input, Lazy) else (other, input)
    return one.scaled(two) if isinstance(one, Deferred | Stacked) else None


def _cat(tensors: Iterable[Any], dim: int = 0) -> Any:
    nodes = list(tensors)
    ready = all(isinstance(n, Deferred) and n.waiting and n.scope.open() for n in nodes)
    if dim not in (1, -3) or not ready:
        return None
    return evaluate.evaluate_cell(nodes)


def _stack(tensors: Iterable[Any], dim: int = 0) -> Any:
    return Stacked(list(tensors)) if dim == 0 else None


def _sum(input: Any, dim: Any = None) -> Any:
    return input.summed() if isinstance(input, Stacked) and dim in (0, (0,), [0]) else None


_HANDLERS: dict[str, Callable[..., Any]] = {
    "add": _add,
    "mul": _mul,
    "cat": _cat,
    "concat": _cat,
    "stack": _stack,
    "sum": _sum,
}


def _is_weight(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.dim() <= 4 and value.is_floating_point()
    return isinstance(value, int | float)


def _product(own: Weight, factor: Weight) -> Weight:
    return factor if isinstance(own, float) and own == 1.0 else own * factor
