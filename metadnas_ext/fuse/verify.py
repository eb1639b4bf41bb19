"""A fused module beside what it was: outputs, gradients and buffers, in both modes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metadnas_ext.fuse.forwards import Entry, Replacement
from metadnas_ext.fuse.probes import Arguments, fresh

TOLERANCE = 1e-8
"""Of float64 results, relative to the largest; what a wrong operation gets wrong is far larger."""


@dataclass
class Outcome:
    """problem: None if both agree.

    ran: the candidates that did, of those asked for. joined: it made a whole cell in one call.
    """

    problem: str | None = None
    ran: set[str] = field(default_factory=set)
    joined: bool = False


def detach_all(module: nn.Module) -> None:
    """The module with its own methods again."""
    for child in module.modules():
        for value in list(vars(child).values()):
            if isinstance(value, Replacement):
                value.detach()


def check(
    module: nn.Module, method: str, choices: Iterable[Arguments], candidates: Mapping[str, str]
) -> Outcome:
    """Runs `module`, with its replaced methods, beside a copy without them, on random numbers.

    choices: arguments to try until the plain copy takes them. candidates: paths of modules whose
    runs are noted, by the names to note.
    """
    problems: list[str] = []
    for arguments in choices:
        try:
            return _compare(module, method, arguments, candidates)
        except _CannotRun as error:
            problems.append(str(error))
    return Outcome(problems[0] if problems else "its arguments are unknown: give fuse an example")


class _CannotRun(Exception):
    """The plain module refuses the probe."""


def _compare(
    module: nn.Module, method: str, arguments: Arguments, candidates: Mapping[str, str]
) -> Outcome:
    try:
        fused = copy.deepcopy(module).cpu().double()
    except Exception as error:
        raise _CannotRun(f"it cannot be copied: {error}") from error
    _randomise(fused)
    plain = copy.deepcopy(fused)
    detach_all(plain)
    outcome = Outcome()
    for name, path in candidates.items():
        _note_calls(plain.get_submodule(path), name, outcome.ran)
    seed = 1  # for both modes: what is sampled, if anything is, is the same
    for training in (True, False):
        try:
            expected = _run(plain.train(training), method, arguments, seed)
        except Exception as error:
            raise _CannotRun(f"on a probe it raises {type(error).__name__}: {error}") from error
        try:
            actual = _run(fused.train(training), method, arguments, seed)
        except Exception as error:
            outcome.problem = f"fused, it raises {type(error).__name__}: {error}"
            return outcome
        entry = vars(fused).get(method)
        outcome.joined = isinstance(entry, Entry) and entry.joined
        outcome.problem = _difference(actual, expected)
        if outcome.problem:
            return outcome
    return outcome


def _note_calls(module: nn.Module, name: str, ran: set[str]) -> None:
    def hook(*_: Any) -> None:
        ran.add(name)

    module.register_forward_hook(hook)


def _run(module: nn.Module, method: str, arguments: Arguments, seed: int) -> dict[str, Tensor]:
    """Everything that must agree, by a name for the report."""
    torch.manual_seed(seed)
    own, leaves = fresh(arguments, torch.float64)
    call = module if method == "forward" else getattr(module, method)
    outs = _flat(call(*own.args, **own.kwargs))
    found = {f"output {i}": out.detach() for i, out in enumerate(outs)}
    named = {f"argument {i}": leaf for i, leaf in enumerate(leaves)}
    named |= {name: p for name, p in module.named_parameters() if p.requires_grad}
    # Not randn_like: it draws in the order of memory, which is another one when fused.
    pulled = [(torch.randn(out.shape) * out).sum() for out in outs if out.requires_grad]
    if pulled and named:
        grads = torch.autograd.grad(pulled, list(named.values()), materialize_grads=True)
        names = (f"gradient of {name}" for name in named)
        found |= dict(zip(names, grads, strict=True))
    return found | {f"buffer {name}": t.clone() for name, t in module.named_buffers()}


def _difference(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
    if actual.keys() != expected.keys():
        return f"fused, it has {sorted(actual.keys() ^ expected.keys())} more or less"
    for name, truth in expected.items():
        own = actual[name]
        if own.shape != truth.shape or own.dtype != truth.dtype:
            return f"fused, its {name} is {own.dtype} {tuple(own.shape)}, not {tuple(truth.shape)}"
        scale = max(1.0, float(truth.abs().max())) if truth.numel() else 1.0
        if not torch.allclose(own, truth, rtol=0.0, atol=TOLERANCE * scale, equal_nan=True):
            error = float((own - truth).abs().max())
            return f"fused, its {name} is off by {error:.1e}"
    return None


@torch.no_grad()
def _randomise(module: nn.Module) -> None:
    """No parameter and no running statistic stays at its default."""
    for parameter in module.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    for norm in module.modules():
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
            assert norm.running_var is not None
            norm.running_mean.add_(0.3 * torch.randn_like(norm.running_mean))
            norm.running_var.mul_(0.5 + torch.rand_like(norm.running_var))


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [t for item in value for t in _flat(item)]
    if isinstance(value, dict):
        return [t for item in value.values() for t in _flat(item)]
    return []
