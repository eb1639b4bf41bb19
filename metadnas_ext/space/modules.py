"""Ordinary modules as parts of a network: parameters, statistics, costs and first values.

Whatever has no kernel is such a module. It is built once as a template; `nn.unfused` runs it as a
function of flat parameters, one client at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from metadnas_ext.errors import ConfigError
from metadnas_ext.placement import to_device
from metadnas_ext.space.primitives import BatchNorm, Part, Weight, parts_cost

_PROBED = 2  # images of a trial run: batch norm of one image of one pixel has no variance


class ModuleTemplate:
    """A module that turns (N, C, H, W) into (N, C', ceil(H / stride), ceil(W / stride)).

    Args:
        build: makes the module; called with a seeded global generator.
        channels_in, channels_out, stride: what it has to do.
        what: names it in messages.

    Parameters may be anything; batch norms must keep running statistics; other buffers are
    constants. Raises ConfigError if `build` fails or a batch norm has no running statistics.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        channels_in: int,
        channels_out: int,
        stride: int,
        what: str,
    ) -> None:
        self._build = build
        self._what = what
        self.channels_in, self.channels_out, self.stride = channels_in, channels_out, stride
        self.skeleton = self._built(0)
        weights = tuple(
            Weight(name, tuple(p.shape)) for name, p in self.skeleton.named_parameters()
        )
        self.norms = self._prepared_norms()
        self.parts: tuple[Part, ...] = (*weights, *self.norms)
        self.constants = {
            f"{path}.{name}" if path else name: buffer
            for path, module in self.skeleton.named_modules()
            if not isinstance(module, _BatchNorm)
            for name, buffer in module.named_buffers(recurse=False)
        }
        self._moved: dict[torch.device, dict[str, Tensor]] = {}
        self._macs: dict[int, int] = {}

    def constants_on(self, device: torch.device) -> dict[str, Tensor]:
        """`constants` on a device, which they are moved to once."""
        if device.type == "cpu":
            return self.constants
        if device not in self._moved:
            self._moved[device] = {n: to_device(t, device) for n, t in self.constants.items()}
        return self._moved[device]

    def fresh(self, seed: int) -> list[Tensor]:
        """First values of the parameters, as the module's own constructor draws them."""
        return [p.detach() for p in self._built(seed).parameters()]

    def cost(self, size: int, unit: str) -> int:
        """Parameters, or multiply-accumulates for one image of size x size pixels, counted."""
        return parts_cost(self.parts, 0, unit) if unit == "params" else self.macs(size)

    def macs(self, size: int) -> int:
        """Multiply-accumulates for one image, counted while the module runs; see `MACCounter`.

        Raises ConfigError if it fails, gives another shape than it should, changes a constant, or
        is random (dropout), which could not be repeated client by client.
        """
        if size not in self._macs:
            self._macs[size] = self._counted(size)
        return self._macs[size]

    def _built(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                module = self._build()
            except Exception as error:
                raise ConfigError(f"{self._what} cannot be built: {error}") from error
        if not isinstance(module, nn.Module):
            raise ConfigError(f"{self._what} must be built as an nn.Module, got {module!r}")
        return module

    def _prepared_norms(self) -> tuple[BatchNorm, ...]:
        """The batch norms, set up so that a training pass leaves the batch's own statistics."""
        norms = []
        for name, module in self.skeleton.named_modules():
            if not isinstance(module, _BatchNorm):
                continue
            if not module.track_running_stats:
                raise ConfigError(f"{self._what}: batch norm {name!r} has no running statistics")
            module.momentum, module.num_batches_tracked = 1.0, None
            # Its weight and bias are among the parameters.
            norms.append(BatchNorm(name, module.num_features, False))
        return tuple(norms)

    def _counted(self, size: int) -> int:
        generator = torch.Generator().manual_seed(0)
        dtype = next((p.dtype for p in self.skeleton.parameters()), torch.get_default_dtype())
        shape = (_PROBED, self.channels_in, size, size)
        x = torch.randn(shape, generator=generator, dtype=dtype)
        where = (
            f"{self._what} on {self.channels_in} channels of {size}x{size} pixels "
            f"at stride {self.stride}"
        )
        constants = {name: buffer.clone() for name, buffer in self.constants.items()}
        counter = MACCounter()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                self.skeleton.train()
                with counter:
                    out = self.skeleton(x)
                again = self.skeleton(x)
        except Exception as error:
            raise ConfigError(f"{where} fails: {error}") from error
        size_out = math.ceil(size / self.stride)
        expected = (_PROBED, self.channels_out, size_out, size_out)
        if not isinstance(out, Tensor) or tuple(out.shape) != expected:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ConfigError(f"{where} gives {got}, expected {expected}")
        if not torch.equal(out, again):
            raise ConfigError(f"{where} gives another result every time")
        if any(not torch.equal(self.constants[name], kept) for name, kept in constants.items()):
            raise ConfigError(f"{where} changes its buffers; only batch norms may")
        return counter.macs // _PROBED


class MACCounter(TorchFunctionMode):
    """Counts the multiply-accumulates of convolutions, linear layers and matrix products.

    By the functions that are called while it is entered, so that a module need not be made of
    torch's own layers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        operands = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, Tensor)]
        if name in ("conv1d", "conv2d", "conv3d", "linear"):
            self.macs += out.numel() * operands[1][0].numel()
        elif name.startswith("conv_transpose"):
            self.macs += operands[0].numel() * operands[1][0].numel()
        elif name in ("matmul", "__matmul__", "mm", "bmm"):
            self.macs += out.numel() * operands[0].shape[-1]
        return out
