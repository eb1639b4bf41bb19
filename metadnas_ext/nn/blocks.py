"""The parts a network is planned from: blocks and cells."""

from __future__ import annotations

from dataclasses import dataclass

from metadnas_ext.space import CellShape, NetworkShape
from metadnas_ext.space.primitives import BatchNorm, Conv, Layer


@dataclass(frozen=True)
class Block:
    """One unit of computation whose parameters are neighbours in the flat row.

    `parts` are its layers by full name, `channels` those of its output, `halvings` the number of
    reductions between the image and its output.
    """

    parts: tuple[Layer, ...]
    channels: int
    halvings: int

    @property
    def norms(self) -> tuple[BatchNorm, ...]:
        return tuple(layer for layer in self.parts if isinstance(layer, BatchNorm))

    @property
    def convolutions(self) -> tuple[Conv, ...]:
        return tuple(layer for layer in self.parts if isinstance(layer, Conv))


@dataclass(frozen=True)
class CellPlan:
    """A cell: edge e goes from state sources[e] to node targets[e] with candidates[e].

    `edges` holds the parameters of all edges, one behind another; `mixed` says whether the edges
    have mixing weights.
    """

    shape: CellShape
    preprocess: tuple[Block, Block]
    edges: Block
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    candidates: tuple[tuple[str, ...], ...]
    mixed: bool


def preprocess_blocks(shape: NetworkShape, cell: CellShape) -> tuple[Block, Block]:
    def block(index: int, parts: tuple[Layer, ...]) -> Block:
        prefix = f"cells.{cell.index}.preprocess{index}"
        named = tuple(renamed(part, f"{prefix}.{part.name}") for part in parts)
        return Block(named, cell.channels, halvings(shape, cell.index))

    first, second = cell.preprocess()
    return block(0, first), block(1, second)


def halvings(shape: NetworkShape, cells: int) -> int:
    """Reductions among the first `cells` cells."""
    return sum(index < cells for index in shape.reductions())


def renamed(layer: Layer, name: str) -> Layer:
    if isinstance(layer, Conv):
        return Conv(name, layer.shape)
    return BatchNorm(name, layer.channels, layer.affine)
