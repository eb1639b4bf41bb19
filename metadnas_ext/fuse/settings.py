"""Plain settings of the user's own modules: what a recognised operation must still agree with."""

from __future__ import annotations

from typing import Any

from torch import nn

_OWN = {*vars(nn.Module()), "forward"}
_PLAIN = (bool, int, float, str, type(None))

Settings = tuple[tuple[tuple[str, ...], dict[str, Any]], ...]


def settings(module: nn.Module) -> Settings:
    """Plain attributes of every module below that is not torch's own, by path.

    A drop-path whose probability is 0 is an identity only as long as it stays 0.
    """
    return tuple(
        (steps(name), values)
        for name, child in module.named_modules()
        if not type(child).__module__.startswith("torch.nn.")
        and (values := {k: v for k, v in vars(child).items() if _plain(k, v)})
    )


def unchanged(module: nn.Module, before: Settings) -> bool:
    for path, values in before:
        now = vars(below(module, path))
        for key, value in values.items():
            if key not in now or now[key] != value:
                return False
    return True


def hooked(module: nn.Module, deep: bool = False) -> bool:
    """Whether hooks watch the module, or with `deep` one below it."""
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ):
        return True
    if deep:
        for child in module._modules.values():
            if child is not None and hooked(child, deep=True):
                return True
    return False


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


def _plain(key: str, value: Any) -> bool:
    return key not in _OWN and isinstance(value, _PLAIN)
