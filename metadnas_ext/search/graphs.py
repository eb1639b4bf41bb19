"""The passes of a training step as CUDA graphs: captured once, then replayed in one call.

A small network is bound by the launches of its kernels, which take the CPU longer to hand out than
the GPU to run. Which kernels, on which memory, changes only where a client leaves the training or
the warm-up of α, or where a batch is the first that is not full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from metadnas_ext.search.cohort import Batch, Cohort
from metadnas_ext.search.optimizers import RowOptimizer
from metadnas_ext.search.steps import LocalStep, Pass, StepBatches


@dataclass(frozen=True)
class Inputs:
    """What is new to a step: its batches, and the clients' progress (k)."""

    train: Batch
    val: Batch | None
    progress: Tensor

    def tensors(self) -> Iterator[Tensor]:
        for batch in (self.train, self.val):
            if batch is not None:
                yield from (batch.x, batch.labels, batch.sizes)
        yield self.progress

    def copy(self) -> Inputs:
        """The same in memory of its own."""
        val = None if self.val is None else self.val.copy()
        return Inputs(self.train.copy(), val, self.progress.clone())

    def fill(self, new: Inputs) -> None:
        """Takes the values of other inputs of the same shapes."""
        for mine, given in zip(self.tensors(), new.tensors(), strict=True):
            mine.copy_(given)


class Replay(Protocol):
    """A step that has been recorded on inputs of its own."""

    def __call__(self, new: Inputs) -> Pass:
        """The step on other inputs; the result is overwritten by the next call."""


Passes = Callable[[Inputs], Pass]


class EagerReplay:
    """Calls the step again: a graph's twin for where there is no GPU."""

    def __init__(self, run: Passes, inputs: Inputs) -> None:
        self._run, self._inputs = run, inputs.copy()

    def __call__(self, new: Inputs) -> Pass:
        self._inputs.fill(new)
        return self._run(self._inputs)


class CUDAReplay:
    """Captures the step, which runs only when replayed, on the GPU of its inputs.

    Whatever the step keeps between calls (parameters, α, Adam's moments, multipliers, what
    `FiniteCheck` has seen) it has to change in place. Captures of one `pool` share their memory:
    what one of them returns must be used up before another is replayed.
    """

    def __init__(self, run: Passes, inputs: Inputs, pool: Any) -> None:
        self._inputs = inputs.copy()
        self._device = inputs.progress.device
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), torch.cuda.graph(self._graph, pool):
            self._done = run(self._inputs)

    def __call__(self, new: Inputs) -> Pass:
        self._inputs.fill(new)
        with torch.cuda.device(self._device):
            self._graph.replay()
        return self._done


class GraphedStep:
    """A local step whose second run of each kind is captured, and from then on replayed.

    The first runs as ever, which also makes whatever is made once: library handles, kept counts.
    Not for steps that are recorded (`Trajectory`), draw noise or take a rate from outside.
    """

    def __init__(
        self, step: LocalStep, record: Callable[[Passes, Inputs], Replay] | None = None
    ) -> None:
        """record: makes a replay of a step; None: `CUDAReplay`."""
        self._step = step
        self._record = record or partial(CUDAReplay, pool=torch.cuda.graph_pool_handle())
        self._replays: dict[tuple[int | bool, ...], Replay | None] = {}

    def __call__(
        self,
        cohort: Cohort,
        batches: StepBatches,
        step: int,
        train: Batch,
        optimizer: RowOptimizer,
    ) -> Pass:
        rows = self._step.validating(batches, step)
        val = None if rows is None else batches.val(rows.stop, rows.start)
        inputs = Inputs(train, val, batches.progress(step))

        def run(given: Inputs) -> Pass:
            drawn = _Drawn(batches, given)
            return self._step(cohort, drawn, step, given.train, optimizer)

        kind = (*self._step.kind(batches, step), train.full, val is None or val.full)
        if kind not in self._replays:
            self._replays[kind] = None
            return run(inputs)
        replay = self._replays[kind]
        if replay is None:
            replay = self._replays[kind] = self._record(run, inputs)
        return replay(inputs)

    def kind(self, batches: StepBatches, step: int) -> tuple[int, ...]:
        return self._step.kind(batches, step)

    def validating(self, batches: StepBatches, step: int) -> slice | None:
        return self._step.validating(batches, step)

    def finish(self) -> None:
        self._step.finish()


class _Drawn:
    """The batches of a cohort at one step, with what that step may ask for drawn already."""

    def __init__(self, batches: StepBatches, inputs: Inputs) -> None:
        self._batches, self._inputs = batches, inputs

    def active(self, step: int) -> int:
        return self._batches.active(step)

    def within(self, step: int, epochs: int) -> int:
        return self._batches.within(step, epochs)

    def progress(self, step: int) -> Tensor:
        return self._inputs.progress

    def generators(self, step: int, purpose: str, rows: slice) -> Sequence[torch.Generator]:
        raise RuntimeError(f"a captured step has asked for random numbers of {purpose!r}")

    def val(self, active: int, first: int = 0) -> Batch:
        assert self._inputs.val is not None
        return self._inputs.val
