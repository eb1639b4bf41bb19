"""NAS-Bench-201's space: one cell type of 4 nodes, 6 edges, every edge kept.

Dong and Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search" (ICLR
2020). Three stages of cells on C, 2C and 4C channels, a residual block between them.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from metadnas_ext.errors import ConfigError
from metadnas_ext.space.bench_modules import ResidualReduction, norm_relu
from metadnas_ext.space.candidates import NAS_BENCH_201, candidate
from metadnas_ext.space.cell_space import Architecture, CellSpace, Choice, Edge
from metadnas_ext.space.modules import ModuleTemplate
from metadnas_ext.space.primitives import Conv, parts_cost

STAGES = 3
NODES = 4
"""States of a cell: its input, and three that are computed, the last of them its output."""

EDGES = tuple(
    Edge(index, source, target - 1)
    for index, (source, target) in enumerate(
        (source, target) for target in range(1, NODES) for source in range(target)
    )
)


@dataclass(frozen=True)
class NASBench201Genotype(Architecture):
    """The operation on each of the six edges: 1<-0, 2<-0, 2<-1, 3<-0, 3<-1, 3<-2.

    `none` is an operation like any other. `str` and `parse` are the published text,
    `|nor_conv_3x3~0|+|none~0|skip_connect~1|+|...~0|...~1|...~2|`. Raises ValueError on an unknown
    primitive or another number of operations.
    """

    edges: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", tuple(self.edges))
        if len(self.edges) != len(EDGES):
            raise ValueError(f"a cell has {len(EDGES)} operations, got {len(self.edges)}")
        for name in self.edges:
            candidate(name, NAS_BENCH_201)

    def operations(self) -> tuple[str, ...]:
        return self.edges

    def to_json(self) -> dict[str, object]:
        """{"arch": the published text}."""
        return {"arch": str(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> NASBench201Genotype:
        """Inverse of `to_json`; ValueError on anything else."""
        if not isinstance(data, Mapping) or set(data) != {"arch"}:
            got = sorted(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(f"a NAS-Bench-201 genotype has exactly the field arch; got {got}")
        return cls.parse(str(data["arch"]))

    @classmethod
    def parse(cls, text: str) -> NASBench201Genotype:
        """Reads the published text; ValueError says what is wrong with it."""
        return cls(operations_of(text))

    def __str__(self) -> str:
        nodes = [""] * (NODES - 1)
        for edge, name in zip(EDGES, self.edges, strict=True):
            nodes[edge.target_node] += f"{name}~{edge.source}|"
        return "+".join(f"|{node}" for node in nodes)


def operations_of(text: str) -> tuple[str, ...]:
    """The operations in an architecture's text, known or not; ValueError if it is none."""
    names: list[str] = []
    for target, node in enumerate(text.strip().split("+"), 1):
        found = re.findall(r"([^|~]+)~(\d+)\|", node)
        if node != "|" + "".join(f"{name}~{source}|" for name, source in found):
            raise ValueError(f"not a NAS-Bench-201 architecture: {node!r} in {text!r}")
        if [source for _, source in found] != [str(source) for source in range(target)]:
            raise ValueError(f"node {target} has the inputs 0 to {target - 1}, got {node!r}")
        names += [name for name, _ in found]
    if len(names) != len(EDGES):
        raise ValueError(f"a cell has {len(EDGES)} operations, got {len(names)} in {text!r}")
    return tuple(names)


@dataclass(frozen=True)
class NASBench201Cells(CellSpace):
    """All 5^6 = 15625 cells, or more with registered candidates. ConfigError on wrong ones."""

    types: ClassVar[tuple[str, ...]] = ("cell",)
    own = NAS_BENCH_201
    forbids_none = False
    candidates: tuple[str, ...] = tuple(NAS_BENCH_201)

    def __post_init__(self) -> None:
        self._check_candidates()

    @property
    def edges(self) -> tuple[Edge, ...]:
        return EDGES

    @property
    def solver_nodes(self) -> int:
        # Every edge is kept: three groups of two edges each, of which two are kept.
        return 1

    def architecture(self, choices: Sequence[Choice]) -> NASBench201Genotype:
        return NASBench201Genotype(tuple(self.candidates[choice.column] for choice in choices))

    def choices(self, architecture: Architecture) -> list[Choice]:
        if not isinstance(architecture, NASBench201Genotype):
            raise ValueError(f"{architecture!r} is not a NAS-Bench-201 architecture")
        return [Choice(0, e, self.column(name)) for e, name in enumerate(architecture.edges)]


@dataclass(frozen=True)
class BenchCell:
    """One cell: the same channels and pixels everywhere. `index` counts reductions too."""

    index: int
    channels: int
    size_out: int

    @property
    def type(self) -> int:
        return 0

    @property
    def mixed_channels(self) -> int:
        return self.channels

    def size(self, edge: Edge) -> int:
        return self.size_out

    def stride(self, edge: Edge) -> int:
        return 1

    def supernet_prefix(self, edge: Edge, column: int) -> str:
        return f"cells.{self.index}.edges.{edge.target_node + 1}<-{edge.source}.{column}"

    def derived_prefix(self, position: int) -> str:
        return f"cells.{self.index}.layers.{position}"


@dataclass(frozen=True)
class Reduction:
    """The residual block in front of a stage: halves the resolution, doubles the channels."""

    index: int
    channels: int
    size_in: int

    def template(self) -> ModuleTemplate:
        return _reduction(self.channels)


@dataclass(frozen=True)
class NASBench201Shape:
    """The macro skeleton; the defaults are the benchmark's. ConfigError on values out of range.

    `layers` counts the searched cells: a multiple of 3 (the paper's N times 3).
    """

    channels: int = 16
    layers: int = 15
    classes: int = 10
    image_size: int = 32
    image_channels: int = 3
    candidates: tuple[str, ...] = tuple(NAS_BENCH_201)

    def __post_init__(self) -> None:
        for name in ("channels", "layers", "classes", "image_size", "image_channels"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.layers % STAGES:
            raise ConfigError(
                f"layers is {self.layers}; NAS-Bench-201 has {STAGES} stages of as many cells, "
                f"so it must be a multiple of {STAGES}"
            )
        _ = self.space  # checks the candidates

    @functools.cached_property
    def space(self) -> NASBench201Cells:
        return NASBench201Cells(self.candidates)

    @property
    def stem_channels(self) -> int:
        return self.channels

    @property
    def head_channels(self) -> int:
        return self.cells()[-1].channels

    def cells(self) -> tuple[BenchCell, ...]:
        each = self.layers // STAGES
        return tuple(
            BenchCell(stage * (each + 1) + cell, *self._stage(stage))
            for stage in range(STAGES)
            for cell in range(each)
        )

    def reductions(self) -> tuple[Reduction, ...]:
        """The blocks between stages; `channels` is their output's."""
        each = self.layers // STAGES
        return tuple(
            Reduction(stage * (each + 1) - 1, self._stage(stage)[0], self._stage(stage - 1)[1])
            for stage in range(1, STAGES)
        )

    def head_template(self) -> ModuleTemplate:
        """Batch norm and ReLU in front of the global pooling."""
        return _head(self.head_channels)

    def fixed_cost(self, unit: str, affine: bool) -> int:
        """Stem, residual blocks and head, whose batch norms always have weights."""
        stem = Conv("stem", (self.stem_channels, self.image_channels, 3, 3))
        total = self.head_channels * self.classes + parts_cost((stem,), self.image_size**2, unit)
        if unit == "params":
            total += 2 * self.stem_channels + self.classes  # the stem's batch norm, the bias
        for block in self.reductions():
            total += block.template().cost(block.size_in, unit)
        return total + self.head_template().cost(self.cells()[-1].size_out, unit)

    def _stage(self, stage: int) -> tuple[int, int]:
        """Channels and resolution."""
        return self.channels << stage, math.ceil(self.image_size / (1 << stage))


@functools.cache
def _reduction(channels: int) -> ModuleTemplate:
    half = channels // 2
    return ModuleTemplate(
        functools.partial(ResidualReduction, half, channels), half, channels, 2, "residual block"
    )


@functools.cache
def _head(channels: int) -> ModuleTemplate:
    build = functools.partial(norm_relu, channels)
    return ModuleTemplate(build, channels, channels, 1, "head")
