"""Measures on this machine what every part of a network takes: `metadnas profile`.

A candidate is timed in the kernel that networks run, on every edge of a cell, less the same cell
with nothing on its edges. Inference: running statistics, no gradients.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metadnas_ext import ops
from metadnas_ext.bench.machine import machine, versions
from metadnas_ext.nn import NetworkPlan, derived_plan
from metadnas_ext.nn import functional as fn
from metadnas_ext.search import discretize
from metadnas_ext.seeding import generator
from metadnas_ext.space import (
    DeviceProfile,
    NetworkShape,
    Part,
    cheapest_cost,
    cost_table,
    dearest_cost,
    genotype_cost,
)
from metadnas_ext.space.cell_space import KEPT, Architecture
from metadnas_ext.space.latency import CELL, HEAD, PREPROCESS, STEM, all_parts, rest_part
from metadnas_ext.space.primitives import (
    BatchNorm,
    Layer,
    factorized_reduce,
    layers,
    parameter_shapes,
    relu_conv_bn,
)

FOR_REST = 5  # whole networks that tell what is taken beside the parts
CHAIN = 4  # nodes of the cell that times candidates of stride 1
SHORTEST = 0.002  # seconds of one measurement; shorter steps run several times for it
EMPTY = "none"

Key = TypeVar("Key", bound=Hashable)
Step = Callable[[], object]
Told = Callable[[int, int], None]
"""How many measurements are done, of how many."""


def profile(
    shape: NetworkShape,
    *,
    batch: int = 1,
    threads: int | None = None,
    repeats: int = 15,
    check: int = 0,
    progress: Told = lambda done, total: None,
) -> DeviceProfile:
    """Times every part of networks of `shape`: medians over interleaved repeats after a warm-up.

    `threads` of torch, None: as many as it takes. A candidate is compared with the empty cell of
    the same repeat, so that a machine that slows down moves both; what comes out below counts as 0.
    The rest is what whole networks from the cheapest to the dearest take beyond their parts.
    `check`: so many other whole networks, timed in the same repeats, are compared with the model.
    """
    used = threads or torch.get_num_threads()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    whole = [*spread_genotypes(shape, FOR_REST), *spread_genotypes(shape, check, seed=1)]
    steps = _part_steps(shape, batch)
    for index, genotype in enumerate(whole):
        steps[index] = _network_step(derived_plan(shape, genotype), batch)
    with _threads(used):
        seconds = samples(steps, repeats, progress)
    taken = [1e3 * statistics.median(seconds[index]) for index in range(len(whole))]
    ms = _parts_ms(shape, seconds)
    measured = DeviceProfile(shape, batch, used, repeats, machine(), versions(), now, ms)
    beyond = np.array(taken[:FOR_REST]) - predicted_ms(measured, whole[:FOR_REST])
    rest = max(0.0, float(np.median(beyond)))
    measured = replace(measured, ms={**ms, rest_part(shape): rest})
    return checked(measured, whole[FOR_REST:], taken[FOR_REST:]) if check else measured


def checked(
    measured: DeviceProfile, genotypes: Sequence[Architecture], ms: Sequence[float]
) -> DeviceProfile:
    """The profile with its `check`: predicted against measured `ms` of whole derived networks.

    `correlation` is Pearson's (None if all are alike), `ratio` the median of measured / predicted,
    `error` that of |measured / predicted - 1|.
    """
    predicted = predicted_ms(measured, genotypes)
    ratios = np.array(ms) / predicted
    varied = len(set(predicted)) > 1 and len(set(ms)) > 1
    correlation = float(np.corrcoef(predicted, ms)[0, 1]) if varied else None
    figures: dict[str, float | None] = {
        "networks": float(len(genotypes)),
        "correlation": correlation,
        "ratio": float(np.median(ratios)),
        "error": float(np.median(np.abs(ratios - 1))),
    }
    return replace(measured, check=figures)


def spread_genotypes(shape: NetworkShape, count: int, seed: int = 0) -> list[Architecture]:
    """Architectures of random α under budgets evenly spread over the MACs the space allows.

    Milliseconds are not known yet: whole networks are timed beside the parts, since a machine's
    speed wanders from minute to minute.
    """
    table = cost_table(shape)
    cheapest, dearest = cheapest_cost(table), dearest_cost(table)
    chosen = []
    for index in range(count):
        # α likes what is dear: else most budgets would not bind.
        alpha = torch.randn(table.cells.shape, generator=generator(seed, "profile", index))
        alpha = alpha + 2 * table.cells / table.cells.amax().clamp(min=1e-9)
        budget = cheapest + (dearest - cheapest) * index / max(1, count - 1)
        chosen.append(discretize(tuple(alpha), table, budget))
    return chosen


def predicted_ms(measured: DeviceProfile, genotypes: Sequence[Architecture]) -> NDArray[np.float64]:
    """Milliseconds of whole derived networks by the additive model."""
    table = measured.cost_table(measured.shape)
    return np.array([genotype_cost(table, genotype) for genotype in genotypes])


def _part_steps(shape: NetworkShape, batch: int) -> dict[Part | int, Step]:
    """What runs each part but the rest, each place's empty cell before its candidates."""
    ordered = [p for part in _timed_parts(shape) for p in (_empty(part), part) if p is not None]
    return {part: _step(part, shape.nodes, batch) for part in dict.fromkeys(ordered)}


def _parts_ms(shape: NetworkShape, seconds: Mapping[Part | int, list[float]]) -> dict[Part, float]:
    """Milliseconds of each part but the rest, which is 0."""
    ms = {rest_part(shape): 0.0}
    for part in _timed_parts(shape):
        times = np.array(seconds[part])
        empty = _empty(part)
        if empty is not None:
            times = (times - np.array(seconds[empty])) / _timed_edges(part)
        ms[part] = max(0.0, 1e3 * float(np.median(times)))
    return ms


def _timed_parts(shape: NetworkShape) -> list[Part]:
    return [part for part in all_parts(shape) if part != rest_part(shape)]


def _empty(part: Part) -> Part | None:
    """What a candidate is compared with; None for what is there in every network."""
    fixed = part.name in (STEM, HEAD, CELL, PREPROCESS)
    return None if fixed else part._replace(name=EMPTY)


@torch.no_grad()
def samples(steps: Mapping[Key, Step], repeats: int, progress: Told) -> dict[Key, list[float]]:
    """Seconds of each step, measured in turn `repeats` times."""
    loops = {}
    for key, step in steps.items():
        step()  # warm-up
        loops[key] = max(1, round(SHORTEST / max(_seconds(step, 1), 1e-7)))
    taken: dict[Key, list[float]] = {key: [] for key in steps}
    order = list(steps)
    for repeat in range(repeats):
        progress(repeat, repeats)
        order = [*order[1:], order[0]]  # so that none always follows the same other
        for key in order:
            taken[key].append(_seconds(steps[key], loops[key]))
    progress(repeats, repeats)
    return {key: taken[key] for key in steps}


def _seconds(step: Step, loops: int) -> float:
    """The median of single steps: those that another process interrupts are few."""
    taken = []
    for _ in range(loops):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _timed_edges(part: Part) -> int:
    """Edges of the cell that times a candidate.

    At stride 2 all edges leave the two inputs, and those that leave one state share its pools: one
    edge each. At stride 1 a chain of nodes gives a difference that stands out more.
    """
    return KEPT if part.stride == 2 else KEPT * CHAIN


def _step(part: Part, nodes: int, batch: int) -> Step:
    """What runs a part once; a candidate on each of `_timed_edges`."""
    x = _values(1, batch, part.size, part.size, part.channels_in)
    if part.name == STEM:
        return _stem_step(part, x)
    if part.name == HEAD:
        return _head_step(part, x)
    if part.name == PREPROCESS:
        return _preprocess_step(part, x)
    if part.name == CELL:
        return _cell_step(part._replace(name=EMPTY), KEPT * nodes, x)
    return _cell_step(part, _timed_edges(part), x)


def _stem_step(part: Part, x: Tensor) -> Step:
    channels = part.channels
    params = _values(1, 9 * channels * part.channels_in + 2 * channels)
    running = torch.ones(1, 1, 2, channels)
    return lambda: ops.conv3x3_bn(x, params, channels, running=running)


def _head_step(part: Part, x: Tensor) -> Step:
    weight = _values(1, part.channels, part.channels_in)
    bias = _values(1, part.channels)
    return lambda: fn.linear(x.mean((2, 3)), weight, bias, None)


def _preprocess_step(part: Part, x: Tensor) -> Step:
    make = factorized_reduce if part.stride == 2 else relu_conv_bn
    params, running = _tensors(make(part.channels_in, part.channels, False), part.channels)
    return lambda: ops.relu_conv_bn(x, params, part.channels, stride=part.stride, running=running)


def _cell_step(part: Part, count: int, x: Tensor) -> Step:
    """A cell with one candidate on all its edges; a node reads the two states before it.

    At stride 2 it reads the two inputs: only their edges stride.
    """
    one = layers(part.name, part.channels, part.stride)
    params, running = _tensors(one, part.channels, count)
    weights, other = torch.ones(1, count, 1), x.clone()
    targets = [edge // KEPT for edge in range(count)]
    sources = [edge % KEPT + (0 if part.stride == 2 else targets[edge]) for edge in range(count)]
    return lambda: ops.cell(
        *(x, other, weights, params, sources, targets, [(part.name,)] * count),
        reduction=part.stride == 2,
        running=running,
    )


def _tensors(parts: tuple[Layer, ...], channels: int, times: int = 1) -> tuple[Tensor, Tensor]:
    """Parameters (1, P) and running statistics (1, S, 2, C) of some layers, several times."""
    size = sum(math.prod(shape) for shape in parameter_shapes(parts).values())
    norms = sum(isinstance(layer, BatchNorm) for layer in parts)
    return _values(1, times * size), torch.ones(1, times * norms, 2, channels)


def _values(*size: int) -> Tensor:
    """Ordinary numbers: subnormal ones and NaN may take longer."""
    return torch.linspace(-1, 1, math.prod(size)).view(size)


def _network_step(plan: NetworkPlan, batch: int) -> Step:
    shape = plan.shape
    theta, running = plan.initial(1, generator(0, "profile")), plan.initial_running(1)
    x = _values(1, batch, shape.image_size, shape.image_size, shape.image_channels)
    return lambda: plan(theta, None, x, running=running)
