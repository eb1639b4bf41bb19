"""What every network of cells is to the code that builds, costs and trains it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from metadnas_ext.space.cell_space import CellSpace, Edge


class SearchedCell(Protocol):
    """Geometry of one cell of a network."""

    @property
    def index(self) -> int: ...

    @property
    def type(self) -> int:
        """Which of the space's cell types it is."""

    @property
    def channels(self) -> int:
        """Channels of every state inside."""

    @property
    def mixed_channels(self) -> int:
        """Channels that the candidates work on."""

    @property
    def size_out(self) -> int:
        """Pixels a side of its nodes."""

    def size(self, edge: Edge) -> int:
        """Pixels a side of what the candidates on an edge read."""

    def stride(self, edge: Edge) -> int:
        """Stride of the candidates on an edge: 1 or 2."""

    def supernet_prefix(self, edge: Edge, column: int) -> str:
        """Name of a candidate's tensors up to the candidate's own, in the public supernet."""

    def derived_prefix(self, position: int) -> str:
        """The same for the kept edge of that position in a discrete network."""


class Shape(Protocol):
    """Everything that fixes a network's geometry."""

    @property
    def space(self) -> CellSpace: ...

    @property
    def channels(self) -> int: ...

    @property
    def layers(self) -> int: ...

    @property
    def classes(self) -> int: ...

    @property
    def image_size(self) -> int: ...

    @property
    def image_channels(self) -> int: ...

    @property
    def candidates(self) -> tuple[str, ...]: ...

    @property
    def stem_channels(self) -> int: ...

    @property
    def head_channels(self) -> int:
        """Channels that the head's linear layer reads."""

    def cells(self) -> Sequence[SearchedCell]:
        """The searched cells, from the stem to the head."""

    def fixed_cost(self, unit: str, affine: bool) -> int:
        """Cost of all that is not searched: "macs" for one image, or "params"."""
