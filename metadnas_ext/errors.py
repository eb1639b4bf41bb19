"""Errors a user can cause. Each message names what was given and what was expected.

The command line prints such an error as one line and exits with status 2; anything else is a bug
and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Mapping


class MetadnasError(Exception):
    """Base of every error that the caller, not the package, can put right."""


class ConfigError(MetadnasError, ValueError):
    """A parameter is unknown, of the wrong type or out of range."""


class UnknownPrimitiveError(ConfigError):
    """A primitive is neither of the search space nor registered."""


class DataError(MetadnasError, ValueError):
    """A dataset is unknown, missing, empty, or cannot be partitioned as asked."""


class BudgetError(MetadnasError, ValueError):
    """No architecture of the search space costs as little as the budget asks."""


class RunError(MetadnasError, RuntimeError):
    """A run folder or checkpoint is missing, in the way, damaged, or of another configuration."""


class DivergenceError(MetadnasError, ArithmeticError):
    """A loss or an update is not finite; the message names the phase and the client.

    `diverged` says what is wrong with each client concerned; it is empty where the clients cannot
    be told, and the run cannot go on without them.
    """

    def __init__(self, message: str, diverged: Mapping[int, str] | None = None) -> None:
        super().__init__(message)
        self.diverged = dict(diverged or {})


class DeadlineError(MetadnasError, TimeoutError):
    """Nodes of a run over a network did not do in time what was waited for; it names them."""


class BenchmarkError(MetadnasError, RuntimeError):
    """An unknown benchmark case, a file that holds no benchmark results, or a wrong result."""


class ExtraError(MetadnasError, ImportError):
    """An optional dependency is missing; the message names the extra that brings it."""
