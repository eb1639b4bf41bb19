"""The DARTS space: two inputs a cell, normal and reduction cells, two edges a node kept.

`NetworkShape.cells` is the only place where channels and resolutions are computed; the network
builder and the cost tables both read it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from metadnas_ext.errors import ConfigError
from metadnas_ext.space.candidates import FUSED
from metadnas_ext.space.cell_space import KEPT, Architecture, CellSpace, Choice, Edge
from metadnas_ext.space.genotype import INPUTS, Genotype
from metadnas_ext.space.primitives import (
    PRIMITIVES,
    Conv,
    Layer,
    factorized_reduce,
    parts_cost,
    relu_conv_bn,
)


@functools.cache
def edges(nodes: int) -> tuple[Edge, ...]:
    """All edges of a cell, numbered node by node and, within a node, by source state."""
    pairs = [(source, node) for node in range(nodes) for source in range(INPUTS + node)]
    return tuple(Edge(index, source, node) for index, (source, node) in enumerate(pairs))


@dataclass(frozen=True)
class DARTSCells(CellSpace):
    """Liu et al., "DARTS" (ICLR 2019). Raises ConfigError on wrong candidates."""

    types: ClassVar[tuple[str, ...]] = ("normal", "reduce")
    own = FUSED
    forbids_none = True
    nodes: int = 4
    candidates: tuple[str, ...] = PRIMITIVES

    def __post_init__(self) -> None:
        self._check_candidates()

    @property
    def edges(self) -> tuple[Edge, ...]:
        return edges(self.nodes)

    @property
    def solver_nodes(self) -> int:
        return self.nodes

    def architecture(self, choices: Sequence[Choice]) -> Genotype:
        pairs: tuple[list[tuple[str, int]], ...] = ([], [])
        for choice in choices:
            source = self.edges[choice.edge].source
            pairs[choice.type].append((self.candidates[choice.column], source))
        return Genotype.of(*pairs)

    def choices(self, architecture: Architecture) -> list[Choice]:
        if not isinstance(architecture, Genotype):
            raise ValueError(f"{architecture!r} is not a genotype of DARTS cells")
        if architecture.nodes != self.nodes:
            raise ValueError(f"cells have {self.nodes} nodes, the genotype {architecture.nodes}")
        index = {(edge.source, edge.target_node): edge.index for edge in self.edges}
        return [
            Choice(type_, index[source, position // KEPT], self.column(primitive))
            for type_, pairs in enumerate((architecture.normal, architecture.reduce))
            for position, (primitive, source) in enumerate(pairs)
        ]


@dataclass(frozen=True)
class CellShape:
    """Channels and square resolutions of one cell.

    `channels` is that of every state inside; the output has nodes * channels. `size_in` is the
    resolution of the two preprocessed inputs, `size_out` that of the nodes, in pixels. Where
    `reduction_prev`, the first input arrives at the resolution before that reduction and a
    factorized reduce brings it to `size_in`. Candidates work on 1 / `partial` of the channels.
    """

    index: int
    reduction: bool
    reduction_prev: bool
    channels_prev_prev: int
    channels_prev: int
    channels: int
    size_in: int
    size_out: int
    partial: int = 1

    @property
    def type(self) -> int:
        return int(self.reduction)

    @property
    def mixed_channels(self) -> int:
        return self.channels // self.partial

    def stride(self, edge: Edge) -> int:
        """2 on the inputs of a reduction cell, else 1."""
        return 2 if self.reduction and edge.source < INPUTS else 1

    def size(self, edge: Edge) -> int:
        return self.size_in if edge.source < INPUTS else self.size_out

    def supernet_prefix(self, edge: Edge, column: int) -> str:
        return f"cells.{self.index}._ops.{edge.index}._ops.{column}"

    def derived_prefix(self, position: int) -> str:
        return f"cells.{self.index}._ops.{position}"

    def preprocess(self, affine: bool = False) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
        """Layers that bring the outputs of the cell before the last, and of the last, to C."""
        first = factorized_reduce if self.reduction_prev else relu_conv_bn
        return (
            first(self.channels_prev_prev, self.channels, affine),
            relu_conv_bn(self.channels_prev, self.channels, affine),
        )


@dataclass(frozen=True)
class NetworkShape:
    """Everything that fixes a network's geometry. Raises ConfigError on values out of range.

    Reduction cells stand at layers // 3 and 2 * layers // 3, except at index 0: one layer has none,
    two layers have one (the second), three or more have two. `partial` K: the candidates of an edge
    work on the first 1 / K of its channels (Xu et al., "PC-DARTS", ICLR 2020); 1: on all.
    """

    channels: int = 16
    layers: int = 8
    nodes: int = 4
    classes: int = 10
    image_size: int = 32
    image_channels: int = 3
    stem_multiplier: int = 3
    candidates: tuple[str, ...] = PRIMITIVES
    partial: int = 1

    def __post_init__(self) -> None:
        for name in (
            "channels",
            "layers",
            "nodes",
            "classes",
            "image_size",
            "image_channels",
            "stem_multiplier",
            "partial",
        ):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.channels % self.partial:
            raise ConfigError(
                f"partial is {self.partial}: it must divide the {self.channels} channels"
            )
        _ = self.space  # checks the candidates

    @functools.cached_property
    def space(self) -> DARTSCells:
        return DARTSCells(self.nodes, self.candidates)

    def reductions(self) -> frozenset[int]:
        """Indices of the reduction cells."""
        return frozenset({self.layers // 3, 2 * self.layers // 3} - {0})

    @property
    def stem_channels(self) -> int:
        return self.stem_multiplier * self.channels

    @property
    def head_channels(self) -> int:
        """Channels that the head's linear layer reads."""
        return self.nodes * self.cells()[-1].channels

    def cells(self) -> tuple[CellShape, ...]:
        """Shape of every cell, from the stem to the head."""
        reductions = self.reductions()
        before_last = last = self.stem_channels
        channels, size = self.channels, self.image_size
        result: list[CellShape] = []
        for index in range(self.layers):
            reduction = index in reductions
            size_out = size
            if reduction:
                channels *= 2
                size_out = math.ceil(size / 2)
            result.append(
                CellShape(
                    index=index,
                    reduction=reduction,
                    reduction_prev=index - 1 in reductions,
                    channels_prev_prev=before_last,
                    channels_prev=last,
                    channels=channels,
                    size_in=size,
                    size_out=size_out,
                    partial=self.partial,
                )
            )
            before_last, last, size = last, self.nodes * channels, size_out
        return tuple(result)

    def fixed_cost(self, unit: str, affine: bool) -> int:
        """Stem, preprocessing and head; batch norms of the preprocessing weigh if `affine`."""
        stem = Conv("stem", (self.stem_channels, self.image_channels, 3, 3))
        total = self.head_channels * self.classes + parts_cost((stem,), self.image_size**2, unit)
        if unit == "params":
            total += 2 * self.stem_channels + self.classes  # the stem's batch norm, the bias
        for cell in self.cells():
            for parts in cell.preprocess(affine):
                total += parts_cost(parts, cell.size_in**2, unit)
        return total
