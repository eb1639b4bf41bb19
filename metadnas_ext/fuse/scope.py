"""Where results of candidates may wait: one forward pass of a cell or of a mixed operation."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from metadnas_ext.fuse.norms import NormMode

if TYPE_CHECKING:
    from metadnas_ext.fuse.deferred import Lazy
    from metadnas_ext.fuse.forwards import CandidateForward

_local = threading.local()


@dataclass(eq=False)
class Call:
    """A candidate called on x, whose result nobody has asked for yet."""

    forward: CandidateForward
    x: Tensor | Lazy
    norms: list[nn.BatchNorm2d]
    mode: NormMode | None  # None: no batch norms
    version: int  # of x: what it is then is what counts
    done: bool = False  # its batch norms have taken their step


class Scope:
    """One forward pass; a context manager.

    calls: all that was put off. joined: whether a whole cell was made in one call.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.joined = False
        self._modes = _modes()

    def open(self) -> bool:
        """Whether gradients and precision are as at the start."""
        return self._modes == _modes()

    @contextlib.contextmanager
    def as_at_start(self) -> Iterator[None]:
        """Results are made as if at once: not without gradients only because they were late."""
        gradients, autocast, dtype = self._modes
        with torch.set_grad_enabled(gradients), torch.autocast("cpu", dtype, autocast):
            yield

    def __enter__(self) -> Scope:
        _local.scope = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _local.scope = None


def current() -> Scope | None:
    """This thread's forward pass, if one is under way."""
    return getattr(_local, "scope", None)


def transformed() -> bool:
    """Whether a compiler, a tracer or a transform of torch.func follows the code.

    It then sees the model as it was.
    """
    functional = torch._C._functorch.peek_interpreter_stack() is not None
    return torch.compiler.is_compiling() or functional or bool(torch._C._get_tracing_state())


def _modes() -> tuple[bool, bool, torch.dtype]:
    return (
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
    )
