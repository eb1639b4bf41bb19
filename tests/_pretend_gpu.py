"""A GPU that is not there: tensors of the CPU, some of which are said to be on `GPU`.

Values are real. Whatever mixes the two kinds of tensors raises, as on a GPU (a number without
dimensions may mix), but for copies; what waits for the device, or could, is counted. Autograd and
indexing, which a torch without CUDA refuses for `FakeTensorMode`'s tensors of a GPU, work as ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

GPU = torch.device("cuda", 0)

aten = torch.ops.aten
READING = (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default)
"""Operators whose result the CPU needs before it goes on: `float(x)`, `if x`, ..."""
INDEXING = (aten.index.Tensor, aten.index_put_.default)


class PretendGPU:
    """While entered, `device=GPU` and `.to(GPU)` make tensors that are on it.

    waits: how often something waited for the device, by name. uploads: copies to it, which cannot
    be part of a CUDA graph.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.uploads = 0
        self._there: dict[int, StorageWeakRef] = {}
        self._modes = (_Dispatch(self), _Functions(self))

    def __enter__(self) -> PretendGPU:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def has(self, tensor: Tensor) -> bool:
        with torch._C.DisableTorchFunction():
            found = self._there.get(tensor.untyped_storage()._cdata)
        return found is not None and not found.expired()

    def put(self, result: Any) -> Any:
        for tensor in _tensors(result):
            if not self.has(tensor):
                with torch._C.DisableTorchFunction():
                    storage = tensor.untyped_storage()
                    self._there[storage._cdata] = StorageWeakRef(storage)
        return result


class _Dispatch(TorchDispatchMode):
    """Operators: results are where the arguments are."""

    def __init__(self, gpu: PretendGPU) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors((args, kwargs)))
        there = [tensor for tensor in tensors if self._gpu.has(tensor)]
        if not there:
            return func(*args, **kwargs)
        if func is aten.copy_.default:
            return self._copied(*args, **kwargs)
        # Autograd makes zeros of its own for results that nobody uses; here those are empty.
        odd = [t for t in tensors if t.dim() > 0 and t.numel() > 0 and not self._gpu.has(t)]
        if odd:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in odd)
            raise RuntimeError(f"{func} on two devices: {shapes} is on the CPU")
        masked = func in INDEXING and any(t is not None and t.dtype == torch.bool for t in args[1])
        if func in READING or masked:
            self._gpu.waits[str(func)] += 1
        return self._gpu.put(func(*args, **kwargs))

    def _copied(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if self._gpu.has(target) != self._gpu.has(source) and source.dim() > 0:
            self._gpu.waits["copy_"] += 1
            self._gpu.uploads += 1
        return aten.copy_.default(target, source)


class _Functions(TorchFunctionMode):
    """What names a device, asks for it or reads values."""

    def __init__(self, gpu: PretendGPU) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        own = args[0] if args and isinstance(args[0], Tensor) else None
        there = own is not None and self._gpu.has(own)
        if func == Tensor.device.__get__:
            return GPU if there else func(*args)
        if func in (Tensor.is_cpu.__get__, Tensor.is_cuda.__get__):
            return there is (func == Tensor.is_cuda.__get__)
        if func is Tensor.to:
            assert own is not None
            return self._to(own, args[1:], kwargs)
        if there and func is Tensor.numpy:
            raise TypeError("can't convert a tensor of the GPU to numpy")
        if there and func == Tensor.new_tensor:
            self._gpu.uploads += 1
        if there and func in (Tensor.cpu, Tensor.tolist, Tensor.new_tensor):
            self._gpu.waits[func.__name__] += 1
            if func is Tensor.cpu:
                return self._down(own)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]) == GPU:
            if func in (torch.tensor, torch.as_tensor):
                self._gpu.waits[func.__name__] += 1
                self._gpu.uploads += 1
            return self._gpu.put(func(*args, **kwargs | {"device": "cpu"}))
        return func(*args, **kwargs)

    def _to(self, own: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        target: Any = kwargs.get("device")
        rest = []
        for arg in args:
            if isinstance(arg, Tensor):
                target, rest = GPU if self._gpu.has(arg) else "cpu", [*rest, arg.dtype]
            elif isinstance(arg, (str, torch.device)):
                target = arg
            elif isinstance(arg, torch.dtype):
                rest.append(arg)
        others = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking")}
        there = self._gpu.has(own)
        if target is None or (torch.device(target) == GPU) == there:
            return own.to(*rest, **others)
        if there and kwargs.get("non_blocking"):
            raise RuntimeError("a copy to the CPU that nobody waits for may be read too early")
        if there or not kwargs.get("non_blocking"):
            self._gpu.waits["to"] += 1
        if there:
            return self._down(own).to(*rest, **others)
        self._gpu.uploads += 1
        return self._gpu.put(own.to(*rest, **others).clone())

    def _down(self, own: Tensor | None) -> Tensor:
        """A copy on the CPU, which is made where nobody looks on."""
        assert own is not None
        with _disable_current_modes():
            return own.detach().clone()


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for part in tree:
            yield from _tensors(part)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))
