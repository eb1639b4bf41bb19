"""Activations that autograd keeps for the backward pass, in bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def most_saved(step: Callable[[], Result], parameters: Sequence[Tensor]) -> tuple[Result, int]:
    """What `step` returns, and the most bytes held for backward at one time while it runs.

    Distinct storages count once; those of `parameters`, which are there anyway, do not.
    """
    meter = _Meter(parameters)
    with torch.autograd.graph.saved_tensors_hooks(meter.pack, meter.unpack):
        result = step()
    return result, meter.most


class _Meter:
    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.most = 0
        self._bytes = 0
        self._holders: Counter[int] = Counter()
        self._free = {_storage(parameter) for parameter in parameters}

    def pack(self, tensor: Tensor) -> _Held:
        return _Held(self, tensor)

    @staticmethod
    def unpack(held: _Held) -> Tensor:
        return held.tensor

    def hold(self, tensor: Tensor) -> None:
        key = _storage(tensor)
        if key in self._free:
            return
        self._holders[key] += 1
        if self._holders[key] == 1:
            self._bytes += tensor.untyped_storage().nbytes()
            self.most = max(self.most, self._bytes)

    def release(self, tensor: Tensor) -> None:
        key = _storage(tensor)
        if key in self._free:
            return
        self._holders[key] -= 1
        if self._holders[key] == 0:
            self._bytes -= tensor.untyped_storage().nbytes()


class _Held:
    """What the graph holds in a tensor's place; its end is that of the saved tensor."""

    def __init__(self, meter: _Meter, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # a result that its own node saves would keep that node alive
        self._meter = meter
        meter.hold(tensor)

    def __del__(self) -> None:
        self._meter.release(self.tensor)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
