"""Runs a case: checks results, then times its variants in turn."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from metadnas_ext.bench.case import COMPILED, GRAPH, OURS, Case, Outcome, Variant, compare
from metadnas_ext.bench.device import captured, compile_modes, gpu_peak_bytes, seconds, wait_for
from metadnas_ext.bench.memory import peak_bytes
from metadnas_ext.bench.results import CaseResult, VariantResult
from metadnas_ext.bench.saved import most_saved
from metadnas_ext.placement import CPU

SLOW = 2.0  # seconds of a first step that tells enough
SHORTEST = 0.002  # seconds of one measurement; shorter steps are run several times in it


@dataclass(frozen=True)
class Settings:
    """How long and what to measure.

    Args:
        repeats: measurements of each variant at most, and `seconds`: of a case; at least one
            measurement of each variant is taken.
        compile: with the torch.compile variants, in each mode.
        memory: with the peak memory of each variant, on a CPU in a process of its own.
        tiny: at the sizes of the tests, to see that everything works.
        device: what is measured, as torch names it.
    """

    repeats: int = 9
    seconds: float = 6.0
    compile: bool = False
    memory: bool = False
    tiny: bool = False
    device: str = "cpu"


class Yardsticks:
    """What the device can do: a large matrix product and a large copy."""

    def __init__(self, device: torch.device = CPU, tiny: bool = False) -> None:
        large = device.type == "cuda"
        self._device = device
        self._side = 128 if tiny else 8192 if large else 2048
        self._floats = 1 << (16 if tiny else 29 if large else 26)  # 2 GB, 256 MB: beyond any cache

    def sgemm(self) -> float:
        """FLOP/s of one square product in single precision."""
        a, b, out = self._matrices
        return 2 * self._side**3 / seconds(lambda: torch.mm(a, b, out=out), self._device)

    def copy(self) -> float:
        """Bytes/s, read and written, of one copy."""
        source, target = self._buffers
        return 2 * source.nbytes / seconds(lambda: target.copy_(source), self._device)

    @cached_property
    def _matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        a = torch.randn(self._side, self._side, device=self._device)
        torch.mm(a, a)  # the first product sets up its library
        return a, a.clone(), torch.empty_like(a)

    @cached_property
    def _buffers(self) -> tuple[Tensor, Tensor]:
        source = torch.ones(self._floats, device=self._device)
        return source, source.clone()


def run_case(
    case: Case,
    settings: Settings,
    yardsticks: Yardsticks,
    progress: Callable[[str], None] = lambda what: None,
) -> CaseResult:
    """Checks every variant against the first, then measures them in turn.

    The order rotates, so that none always follows the same other. `progress` is told what is going
    on. Raises BenchmarkError on a result that is wrong; where torch.compile fails or is wrong, or
    eager code cannot be captured as a CUDA graph, the result only notes it.
    """
    progress("inputs")
    device = torch.device(settings.device)
    setup = case.setup(settings.tiny, device)
    makers = setup.makers(
        compile_modes(device) if settings.compile else (),
        captured if device.type == "cuda" else None,
    )
    running: dict[str, _Running] = {}
    notes = [setup.note] if setup.note else []
    for name, make in makers.items():
        progress(f"check of {name}")
        try:
            one = _warmed_up(make(), name, device)
            _check(case, name, one, running, setup.tolerance)
        except Exception as error:
            if name in setup.variants or name.startswith(OURS):
                raise
            # Not ours to put right, and no reason to lose the other figures.
            notes.append(f"{name} failed ({type(error).__name__})")
            continue
        running[name] = one
        if settings.memory and name in setup.variants:
            progress(f"memory of {name}")
            one.result.peak_bytes = (
                gpu_peak_bytes(one.variant.step, device)
                if device.type == "cuda"
                else peak_bytes(case.name, name, tiny=settings.tiny)
            )
    result = CaseResult(
        case.name,
        case.title,
        case.sizes(settings.tiny),
        {name: one.result for name, one in running.items()},
        setup.work,
        note="; ".join(notes),
    )
    _time(result, running, settings, yardsticks, progress)
    return result


@dataclass
class _Running:
    """A variant under measurement: the outcome of its first step, and steps per measurement."""

    variant: Variant
    result: VariantResult
    outcome: Outcome
    loops: int


def _warmed_up(variant: Variant, name: str, device: torch.device) -> _Running:
    """A first step, for its outcome and what it saves; unless it is slow, one more to time it."""
    start = time.perf_counter()
    saved = None
    if name.startswith(COMPILED) or name.endswith(GRAPH):
        # Hooks would be compiled with it, and the next step may overwrite what this one returns.
        outcome = _copied(variant.step())
    else:
        outcome, saved = most_saved(variant.step, variant.parameters)
    wait_for(device)
    first = time.perf_counter() - start
    again = first if first > SLOW else seconds(variant.step, device)
    loops = max(1, math.ceil(SHORTEST / max(again, 1e-7)))
    return _Running(variant, VariantResult([], first, saved_bytes=saved), outcome, loops)


def _copied(outcome: Outcome) -> Outcome:
    return {
        name: value.clone() if isinstance(value, Tensor) else [part.clone() for part in value]
        for name, value in outcome.items()
    }


def _check(
    case: Case, name: str, one: _Running, before: dict[str, _Running], tolerance: float
) -> None:
    if one.variant.comparable:
        first = next(iter(before.values()), one)
        what = f"{case.name}, {name}"
        one.result.error = compare(first.outcome, one.outcome, tolerance, what)


def _time(
    result: CaseResult,
    running: dict[str, _Running],
    settings: Settings,
    yardsticks: Yardsticks,
    progress: Callable[[str], None],
) -> None:
    device = torch.device(settings.device)
    sgemm: list[float] = []
    copy: list[float] = []
    start = time.perf_counter()
    for repeat in range(settings.repeats):
        if repeat > 0 and time.perf_counter() - start > settings.seconds:
            break
        progress(f"measurement {repeat + 1}")
        if result.work.flop is not None:
            sgemm.append(yardsticks.sgemm())
        if result.work.bytes is not None:
            copy.append(yardsticks.copy())
        for name in _rotated(list(running), repeat):
            one = running[name]
            one.result.seconds.append(seconds(one.variant.step, device, one.loops))
    result.sgemm = statistics.median(sgemm) if sgemm else None
    result.copy = statistics.median(copy) if copy else None


def _rotated(names: Sequence[str], by: int) -> list[str]:
    by %= len(names)
    return [*names[by:], *names[:by]]
