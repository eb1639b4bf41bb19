"""What a local search did, so that it can be differentiated: each step's gradient and its loss.

Gradients and batches alone are kept: P numbers a step and client, and the images of both batches.
The states between them are made again from the first one by the optimisers' own steps, to the bit,
which is cheap beside a network's gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from metadnas_ext.search.cohort import Cohort
from metadnas_ext.search.optimizers import RowOptimizer

Losses = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Losses (k) of a step at theta (k, P), alpha and the server's alpha, both (k, types, E, O).

In their precision."""

State = dict[str, list[Tensor]]
"""For "theta" and "alpha": the rows (G, ...), then their optimiser's moments."""


class Step(NamedTuple):
    """One step of an optimiser on `name`, "theta" or "alpha", of the clients of some rows."""

    name: str
    optimizer: RowOptimizer
    clients: slice
    done: int  # steps of w before it
    grad: Tensor  # (k, ...), of these clients, as autograd gave it
    losses: Losses

    def apply(self, state: State) -> None:
        self.optimizer.apply(state[self.name], self.grad, self.clients, self.done)


class Trajectory:
    """Recorder of a cohort's local search; each client's last `window` steps of w, 0: all of them.

    `train` calls `begin` before the first step and sets `done`, whoever takes a step calls `record`
    just before. Every step starts where the one recorded before it ended.
    """

    def __init__(self, window: int = 0) -> None:
        self.steps: list[Step] = []
        self.start: State = {}  # each client's before its first step in `steps`
        self.done = 0
        self._window = window
        self._totals: list[int] = []
        self._entered: dict[str, int] = {}  # the first row whose recording has begun

    def begin(self, cohort: Cohort, totals: Sequence[int]) -> None:
        """totals: steps that each client is going to take, most first."""
        assert cohort.alpha is not None
        rows = {"theta": cohort.theta, "alpha": cohort.alpha}
        self.start = {name: [tensor.clone()] for name, tensor in rows.items()}
        self._entered = dict.fromkeys(rows, len(totals))
        self._totals = list(totals)

    def record(
        self,
        name: str,
        optimizer: RowOptimizer,
        grad: Tensor,
        rows: slice,
        losses_of: Callable[[slice], Losses],
    ) -> None:
        """A step of `rows` about to be taken: grad (k, ...), and the losses of some of those rows.

        The first of these rows must not lie behind that of the step on `name` before.
        """
        clients = slice(max(rows.start, self._far), rows.stop)
        if clients.start >= clients.stop:
            return
        kept = self.start[name]
        if len(kept) == 1:
            kept += [tensor.clone() for tensor in optimizer.tensors[1:]]
        entering = slice(clients.start, self._entered[name])
        for mine, tensor in zip(kept, optimizer.tensors, strict=True):
            mine[entering] = tensor[entering]
        self._entered[name] = clients.start
        own = grad[clients.start - rows.start : clients.stop - rows.start].clone()
        self.steps.append(Step(name, optimizer, clients, self.done, own, losses_of(clients)))

    @property
    def _far(self) -> int:
        """How many clients, from the first, are not near their end yet."""
        if self._window == 0:
            return 0
        return sum(total > self.done + self._window for total in self._totals)

    def reversed(self) -> Iterator[tuple[State, Step]]:
        """Every step and the state before it, from the last to the first; the state is to be read.

        The states of about log2 of the steps are in memory at once.
        """
        return _reversed(self.start, self.steps)


def _reversed(state: State, steps: Sequence[Step]) -> Iterator[tuple[State, Step]]:
    if len(steps) == 1:
        yield state, steps[0]
    if len(steps) < 2:
        return
    half = len(steps) // 2
    middle = {name: [tensor.clone() for tensor in tensors] for name, tensors in state.items()}
    for step in steps[:half]:
        step.apply(middle)
    yield from _reversed(middle, steps[half:])
    yield from _reversed(state, steps[:half])
