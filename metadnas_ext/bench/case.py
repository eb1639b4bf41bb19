"""What a benchmark case is: variants of one step, how they are compared, and the work they do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from metadnas_ext.errors import BenchmarkError
from metadnas_ext.placement import CPU

NCHW = "eager NCHW"
CHANNELS_LAST = "eager channels-last"
COMPILED = "torch.compile"
OURS = "metadnas_ext"
NETWORK_VARIANTS = (NCHW, CHANNELS_LAST, OURS)
ALL_GRAPHS = (NCHW, CHANNELS_LAST, COMPILED, OURS)

GRAPH = ", CUDA graph"
"""Behind the name of a variant whose step is replayed as one graph."""

Outcome = Mapping[str, Tensor | Sequence[Tensor]]
"""What a step computed, by name; the tensors of a sequence are compared as one vector."""


@dataclass(frozen=True)
class Work:
    """What one step must do, whoever does it.

    flop: floating-point operations of convolutions and products, 2 a multiply-accumulate, with
    twice the forward pass for a backward pass. bytes: least traffic with memory, each input read
    once and each output written once.
    """

    flop: float | None = None
    bytes: float | None = None


@dataclass(frozen=True)
class Variant:
    """One way of doing the step.

    Args:
        step: does it, from the same state every time.
        parameters: weights it starts from, which do not count as saved activations.
        comparable: False where it computes something else by design and is only timed.
    """

    step: Callable[[], Outcome]
    parameters: Sequence[Tensor] = ()
    comparable: bool = True


@dataclass(frozen=True)
class Setup:
    """A case at one size, its inputs made.

    Args:
        variants: makers by name; the first is what the others are compared with.
        tolerance: largest relative L2 error of anything in an outcome.
        compiled: maker of a torch.compile variant for a mode.
        note: what was scaled down, and why.
        graphs: variants whose steps can be captured as CUDA graphs, of torch.compile all modes
            under COMPILED: they start from the same state on the device every time and do not
            wait for it.
    """

    variants: Mapping[str, Callable[[], Variant]]
    tolerance: float
    work: Work = field(default_factory=Work)
    compiled: Callable[[str], Variant] | None = None
    note: str = ""
    graphs: Collection[str] = ()

    def makers(
        self,
        compile_modes: Sequence[str] = (),
        capture: Callable[[Variant], Variant] | None = None,
    ) -> dict[str, Callable[[], Variant]]:
        """All makers, ours last, with one for each mode of torch.compile that is wanted.

        capture: makes a CUDA graph of a variant; where it is given, each variant of `graphs` comes
        a second time, behind its plain form.
        """
        makers = dict(self.variants)
        if self.compiled is not None:
            for mode in compile_modes:
                makers[f"{COMPILED} {mode}"] = partial(_compiled, self.compiled, mode)
        makers[OURS] = makers.pop(OURS)
        if capture is None:
            return makers
        both: dict[str, Callable[[], Variant]] = {}
        for name, make in makers.items():
            both[name] = make
            kind = COMPILED if name.startswith(COMPILED) else name
            # "max-autotune" captures graphs of its own.
            if kind in self.graphs and name != f"{COMPILED} max-autotune":
                both[name + GRAPH] = partial(_captured, make, capture)
        return both


@dataclass(frozen=True)
class Case:
    """One row of the registry; `name` is "group/what".

    `variants` names those that `make(device=..., **params)` returns, so that they can be listed
    without making inputs. `tiny` replaces parameters for a run of the tests. `quick`: part of the
    default set; `large`: for a GPU, part of no set on a CPU.
    """

    name: str
    title: str
    make: Callable[..., Setup]
    params: Mapping[str, int]
    tiny: Mapping[str, int]
    variants: tuple[str, ...] = NETWORK_VARIANTS
    quick: bool = True
    large: bool = False

    @property
    def group(self) -> str:
        return self.name.partition("/")[0]

    def sizes(self, tiny: bool = False) -> dict[str, int]:
        return {**self.params, **(self.tiny if tiny else {})}

    def setup(self, tiny: bool = False, device: torch.device = CPU) -> Setup:
        return self.make(device=device, **self.sizes(tiny))


def compare(expected: Outcome, got: Outcome, tolerance: float, what: str) -> float:
    """Largest relative L2 error of `got`; BenchmarkError naming `what` if above the tolerance."""
    if expected.keys() != got.keys():
        differ = ", ".join(sorted(set(expected) ^ set(got)))
        raise BenchmarkError(f"{what} differs from {_FIRST} in what it computes: {differ}")
    largest = 0.0
    for name in expected:
        error = _relative_error(_vector(expected[name]), _vector(got[name]))
        if not error <= tolerance:  # NaN is not
            raise BenchmarkError(
                f"{what}: {name} differs from {_FIRST} by {error:.1e} (relative L2 norm), "
                f"allowed {tolerance:.0e}; nothing was timed"
            )
        largest = max(largest, error)
    return largest


_FIRST = "the first variant"


def _relative_error(expected: Tensor, got: Tensor) -> float:
    if expected.shape != got.shape:
        return float("inf")
    return float((got - expected).norm() / expected.norm().clamp(min=1e-30))


def _vector(value: Tensor | Sequence[Tensor]) -> Tensor:
    parts = [value] if isinstance(value, Tensor) else value
    return torch.cat([part.detach().reshape(-1).double() for part in parts])


def _compiled(make: Callable[[str], Variant], mode: str) -> Variant:
    """Tells torch.compile's own CUDA graphs that results of the last step are done with."""
    variant = make(mode)

    def step() -> Outcome:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return variant.step()

    return replace(variant, step=step)


def _captured(make: Callable[[], Variant], capture: Callable[[Variant], Variant]) -> Variant:
    return capture(make())
