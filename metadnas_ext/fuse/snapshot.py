"""What a recognised module looked like: an operation stands for it only as long as that holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

_OWN = {*vars(nn.Module()), "forward"}
_PLAIN = (bool, int, float, str, type(None))
_READ_ANEW = {"eps", "momentum", "affine", "track_running_stats"}
"""Settings of batch norms that every call looks up."""


@dataclass(frozen=True)
class Snapshot:
    """A module's class, plain attributes and names of parameters, and those of its children.

    A drop path whose probability is 0 is an identity only as long as it stays 0.
    """

    kind: type[nn.Module]
    values: dict[str, Any]
    parameters: list[str] | None
    children: dict[str, Snapshot]

    def holds(self, module: nn.Module | None) -> bool:
        """Whether the module is as it was, and nobody watches it: hooks need its layers to run."""
        if module is None or type(module) is not self.kind or hooked(module):
            return False
        now = vars(module)
        for key, value in self.values.items():
            if key not in now or now[key] != value:
                return False
        if self.parameters is not None and self.parameters != _parameters(module):
            return False
        inner = module._modules
        if len(inner) != len(self.children):
            return False
        for name, child in self.children.items():
            if name not in inner or not child.holds(inner[name]):
                return False
        return True


def snapshot(module: nn.Module) -> Snapshot:
    norm = isinstance(module, nn.BatchNorm2d)
    skipped = _OWN | _READ_ANEW if norm else _OWN
    values = {k: v for k, v in vars(module).items() if k not in skipped and _plain(v)}
    children = {name: snapshot(child) for name, child in module.named_children()}
    return Snapshot(type(module), values, None if norm else _parameters(module), children)


def hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def below(module: nn.Module, path: tuple[str, ...]) -> nn.Module:
    """The module at a path; faster than `get_submodule`, which checks each step."""
    for name in path:
        child = module._modules[name]
        assert child is not None
        module = child
    return module


def steps(path: str) -> tuple[str, ...]:
    """A dotted path for `below`."""
    return tuple(path.split(".")) if path else ()


def _parameters(module: nn.Module) -> list[str]:
    return [name for name, parameter in module._parameters.items() if parameter is not None]


def _plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(item, _PLAIN) for item in value)
    return isinstance(value, _PLAIN)
