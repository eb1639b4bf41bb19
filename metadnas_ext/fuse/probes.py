"""Arguments to try a module with: those a run of the model gave it, or invented ones."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metadnas_ext.fuse.expression import PROBE_SIZE
from metadnas_ext.fuse.find import Mixture, methods
from metadnas_ext.fuse.forwards import Replacement

IMAGE_SIZE = 32
IMAGES = 2
SMALLEST = 4
"""Pixels to which a probe is made smaller at most."""

Key = tuple[str, str]
"""Path of a module and name of its method."""


@dataclass(frozen=True)
class Arguments:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Carrier:
    """An object whose every attribute is the mixing weights, for code that reads them off one."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.weights


class _Recording(Replacement):
    """Keeps the first arguments that a method gets."""

    def __init__(self, module: nn.Module, method: str, key: Key, seen: dict[Key, Arguments]):
        super().__init__(module, method)
        self.key = key
        self.seen = seen

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.seen.setdefault(self.key, Arguments(args, kwargs))
        return self.original(*args, **kwargs)


def observed(model: nn.Module, paths: Iterable[str], example: Any) -> dict[Key, Arguments]:
    """What the methods of the modules at `paths` get while a copy of the model runs.

    example: the model's arguments; None: random images, if the model takes nothing else. Raises
    what the model raises on an example of the caller's.
    """
    seen: dict[Key, Arguments] = {}
    inputs = _guess(model) if example is None else example
    try:
        trial = copy.deepcopy(model)
        for path in paths:
            module = trial.get_submodule(path)
            for method in methods(module):
                _Recording(module, method, (path, method), seen).attach()
        with torch.no_grad():
            trial(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    except Exception:  # the code is the user's: what its parts got so far counts
        if example is not None:
            raise
        return {key: arguments for key, arguments in seen.items() if key[0]}
    return seen


def invented(mixture: Mixture, method: str) -> Iterator[Arguments]:
    """Arguments in the ways that mixed operations are called: x, or x and mixing weights."""
    signature = inspect.signature(getattr(type(mixture.module), method))
    required = [
        p
        for p in list(signature.parameters.values())[1:]
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    channels = next((c.channels for c in mixture.candidates.values() if c.channels), 4)
    sizes = list(mixture.lists.values())
    shape = sizes if len(sizes) == 1 else [len(sizes), max(sizes)]
    for share in (1, 4, 2, 8):  # partial channels
        x = torch.randn(IMAGES, share * channels, PROBE_SIZE, PROBE_SIZE)
        weights = torch.rand(shape)
        if len(required) == 1:
            yield Arguments((x,), {})
        if len(required) == 2:
            for given in (weights, list(weights.unbind()), Carrier(weights)):
                yield Arguments((x, given), {})


def fresh(arguments: Arguments, dtype: torch.dtype) -> tuple[Arguments, list[Tensor]]:
    """The same with random numbers, fewer images and pixels; and its tensors, as leaves."""
    leaves: list[Tensor] = []
    shapes = [t.shape for t in _tensors(arguments) if t.dim() == 4]
    factor = _shrinking([size for shape in shapes for size in shape[2:]])

    def renew(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        if t.dim() == 4:
            images, channels, *size = t.shape
            small = [pixels // factor for pixels in size]
            new = torch.randn(min(images, IMAGES), channels, *small, dtype=dtype)
        else:
            new = torch.rand(t.shape, dtype=dtype) + 0.05  # no mixing weight is 0
        leaves.append(new.requires_grad_())
        return new.clone()  # no leaf: code may change it in place

    args = _mapped(arguments.args, renew)
    kwargs = _mapped(arguments.kwargs, renew)
    return Arguments(args, kwargs), leaves


def _guess(model: nn.Module) -> Tensor:
    """Random images of as many channels as the first convolution asks for."""
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    return torch.randn(IMAGES, channels, IMAGE_SIZE, IMAGE_SIZE)


def _shrinking(sizes: list[int]) -> int:
    """By how much all sizes can be divided and stay even."""
    for factor in (8, 4, 2):
        if sizes and all(s % (2 * factor) == 0 and s // factor >= SMALLEST for s in sizes):
            return factor
    return 1


def _tensors(arguments: Arguments) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(t: Tensor) -> Tensor:
        found.append(t)
        return t

    _mapped((arguments.args, arguments.kwargs), keep)
    return found


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`function` of every tensor in nested containers; other objects as they are."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Carrier):
        return Carrier(function(value.weights))
    if type(value) in (tuple, list):
        return type(value)(_mapped(item, function) for item in value)
    if type(value) is dict:
        return {key: _mapped(item, function) for key, item in value.items()}
    return value
