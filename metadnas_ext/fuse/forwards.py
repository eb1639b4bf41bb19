"""What replaces `forward` on single modules of a model. Ordinary objects: they copy and pickle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metadnas_ext import ops
from metadnas_ext.fuse import norms
from metadnas_ext.fuse.deferred import Deferred, settle
from metadnas_ext.fuse.evaluate import channels_first, channels_last, packed, version_of
from metadnas_ext.fuse.norms import NormMode, mode_of
from metadnas_ext.fuse.recognise import Block, Candidate, NormAt, Part
from metadnas_ext.fuse.scope import Call, Scope, current, transformed
from metadnas_ext.fuse.snapshot import below, hooked, snapshot, steps


class Replacement:
    """Stands on a module in place of the method of that name of its class."""

    def __init__(self, module: nn.Module, method: str = "forward") -> None:
        self.module = module
        self.method = method

    def attach(self) -> None:
        vars(self.module)[self.method] = self

    def detach(self) -> None:
        vars(self.module).pop(self.method, None)

    def original(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(type(self.module), self.method)(self.module, *args, **kwargs)


class Entry(Replacement):
    """The user's own code of a cell or mixed operation, in which candidates may wait.

    inside: paths of the mixed operations below, of a cell. `joined`: whether its last run made a
    whole cell in one call, and not a part of it did.
    """

    def __init__(self, module: nn.Module, method: str, inside: Sequence[str] = ()) -> None:
        super().__init__(module, method)
        self.inside = [steps(path) for path in inside]
        self.joined = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        watched = any(hooked(below(self.module, path)) for path in self.inside)
        if transformed() or watched:  # then mixed operations, whose hooks want tensors, fuse alone
            return self.original(*args, **kwargs)
        outer = current()
        if outer is not None:  # a mixed operation within a cell, whose end settles what still waits
            joined = outer.joined
            result = self.original(*args, **kwargs)
            outer.joined = joined
            return result
        with Scope() as scope:
            result = settle(self.original(*args, **kwargs))
            # A result that nobody used still moves running statistics.
            for call in scope.calls:
                if not call.done and call.mode is not None:
                    Deferred(scope, [(call, 1.0)], [], _shape(call)).tensor()
            self.joined = scope.joined
        return result


class Fused(Replacement):
    """The forward of a module that is one operation of the kernels."""

    def __init__(self, module: nn.Module, parts: tuple[Part, ...]) -> None:
        super().__init__(module)
        self.snapshot = snapshot(module)
        # Path of the layer, and the name of its weight; None: a batch norm.
        self._parts: list[tuple[tuple[str, ...], str | None]] = []
        for part in parts:
            *path, name = steps(part.path)
            norm = isinstance(part, NormAt)
            self._parts.append((steps(part.path), None) if norm else (tuple(path), name))
        self._norms = [path for path, name in self._parts if name is None]

    def tensors(self) -> list[Tensor]:
        """Parameters in the kernels' order; looked up each time, as users may swap them."""
        found: list[Tensor] = []
        for path, name in self._parts:
            layer = below(self.module, path)
            if name is not None:
                found.append(getattr(layer, name))
            elif layer.weight is not None:
                found += (layer.weight, layer.bias)  # type: ignore[arg-type]
        return found

    def norms(self) -> list[nn.BatchNorm2d]:
        return [below(self.module, path) for path in self._norms]  # type: ignore[misc]

    def applies(self, x: Any, channels: int | None) -> bool:
        """Whether the module is still what was recognised, and x is for the CPU's kernels."""
        return (
            (isinstance(x, Deferred) or type(x) in (Tensor, nn.Parameter))
            and x.dim() == 4
            and (channels is None or x.shape[1] == channels)
            and (isinstance(x, Deferred) or _computable(x))
            and self.snapshot.holds(self.module)
        )


class CandidateForward(Fused):
    """A candidate: its result waits to be summed. Outside a scope it is what it was."""

    def __init__(self, module: nn.Module, found: Candidate) -> None:
        super().__init__(module, found.parts)
        self.found = found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        scope = current()
        if scope is None or not args or not self.applies(args[0], self.found.channels):
            return self.original(*settle(args), **settle(kwargs))
        norms = self.norms()
        modes = {mode_of(norm) for norm in norms}
        if len(modes) > 1 or not scope.open():
            return self.original(*settle(args), **settle(kwargs))
        mode = modes.pop() if modes else None
        call = Call(self, args[0], norms, mode, version_of(args[0]))
        scope.calls.append(call)
        return Deferred(scope, [(call, 1.0)], [], _shape(call))


class BlockForward(Fused):
    """ReLU, convolution, batch norm in one operator, wherever it is called."""

    def __init__(self, module: nn.Module, found: Block) -> None:
        super().__init__(module, found.parts)
        self.found = found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = settle(args), settle(kwargs)
        if transformed() or not args or not self.applies(args[0], self.found.channels_in):
            return self.original(*args, **kwargs)
        (norm,) = self.norms()
        return self._run(args[0], norm, mode_of(norm))

    def _run(self, image: Tensor, norm: nn.BatchNorm2d, mode: NormMode) -> Tensor:
        x = channels_last(image)  # (1, N, H, W, C)
        params = packed(self.tensors(), x)
        channels, affine, eps = self.found.channels_out, mode.affine, mode.eps
        running = None if mode.batch_statistics else norms.running([norm])
        if self.found.kernel == 3:
            out, stats = ops.conv3x3_bn(
                x, params, channels, affine=affine, running=running, eps=eps
            )
        else:
            out, stats = ops.relu_conv_bn(
                *(x, params, channels),
                stride=self.found.stride,
                relu=self.found.relu,
                affine=affine,
                running=running,
                eps=eps,
            )
        norms.update([norm], stats[0], out[0, ..., 0].numel())
        return channels_first(out)


def _computable(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.is_floating_point() and x.numel() > 0


def _shape(call: Call) -> torch.Size:
    """(N, C, H, W) of a call's result."""
    images, channels, height, width = call.x.shape
    stride = call.forward.found.stride
    return torch.Size((images, channels, -(-height // stride), -(-width // stride)))
