"""What is searched inside a cell, whichever space it is of, and what a search ends with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from metadnas_ext.errors import ConfigError
from metadnas_ext.space.candidates import Candidate, candidate

KEPT = 2
"""Edges of a group that a discrete cell keeps."""


@dataclass(frozen=True)
class Edge:
    """One mixed edge of a cell: `source` is a state, `target_node` the node it feeds.

    States are the cell's inputs, then its nodes.
    """

    index: int
    source: int
    target_node: int


class Choice(NamedTuple):
    """That a cell of `type` applies the candidate of `column` on its edge `edge`."""

    type: int
    edge: int
    column: int


class Architecture(ABC):
    """A discrete architecture: hashable, with a text form that names it."""

    @abstractmethod
    def operations(self) -> tuple[str, ...]:
        """The operation on every edge that it keeps, over all cell types."""

    @abstractmethod
    def to_json(self) -> dict[str, object]:
        """Plain values, ready for `json.dump`."""


class CellSpace(ABC):
    """A graph of mixed edges, the same candidates on each, and the rule that makes it discrete.

    α of a space is [types, edges, candidates]. Edges come in groups of neighbours (the incoming
    edges of a node), of each of which a discrete cell keeps two, with one candidate each.
    """

    types: ClassVar[tuple[str, ...]]
    """Names of the cell types; cells of one type share α."""
    own: ClassVar[Mapping[str, Candidate]]
    """The candidates the space itself defines."""
    forbids_none: ClassVar[bool]
    """Whether `none` takes part in the search but is never chosen."""
    candidates: tuple[str, ...]

    @property
    @abstractmethod
    def edges(self) -> tuple[Edge, ...]:
        """All edges of a cell, by target and, within a node, by source."""

    @property
    @abstractmethod
    def solver_nodes(self) -> int:
        """After how many groups their sizes start again: 2, 3, ... edges."""

    @abstractmethod
    def architecture(self, choices: Sequence[Choice]) -> Architecture:
        """The architecture with these choices: all groups of the first type, then the next."""

    @abstractmethod
    def choices(self, architecture: Architecture) -> list[Choice]:
        """The inverse of `architecture`; ValueError if it is not of this space."""

    @property
    def alpha_shape(self) -> tuple[int, int, int]:
        """Cell types, edges, candidates."""
        return len(self.types), len(self.edges), len(self.candidates)

    def groups(self) -> list[range]:
        """Edges of every group of a cell."""
        groups: list[range] = []
        first = 0
        while first < len(self.edges):
            size = KEPT + len(groups) % self.solver_nodes
            groups.append(range(first, first + size))
            first += size
        return groups

    def survival(self) -> Tensor:
        """Chance of each edge to be kept: 2 of the edges of its group; float64 [edges]."""
        chances = [KEPT / len(group) for group in self.groups() for _ in group]
        return torch.tensor(chances, dtype=torch.float64)

    def edge_log_weights(self, beta: Tensor) -> Tensor:
        """Log-softmax of β (..., edges) over the edges into each node.

        Xu et al., "PC-DARTS" (ICLR 2020), equation 4: edge normalisation.
        """
        nodes = [edge.target_node for edge in self.edges]
        sizes = [nodes.count(node) for node in dict.fromkeys(nodes)]
        return torch.cat([part.log_softmax(-1) for part in torch.split(beta, sizes, -1)], -1)

    def candidate(self, name: str) -> Candidate:
        """The operation of that name; ConfigError if there is none."""
        return candidate(name, self.own)

    def choosable(self) -> list[int]:
        """Columns that a discrete architecture may choose."""
        return [column for column in range(len(self.candidates)) if column != self.forbidden]

    @property
    def forbidden(self) -> int:
        """The column that may not be chosen, or -1."""
        barred = self.forbids_none and "none" in self.candidates
        return self.candidates.index("none") if barred else -1

    def column(self, primitive: str) -> int:
        """Column of a candidate; ValueError lists the known ones."""
        try:
            return self.candidates.index(primitive)
        except ValueError:
            known = ", ".join(self.candidates)
            raise ValueError(f"no candidate {primitive!r} here, only {known}") from None

    def _check_candidates(self) -> None:
        names = self.candidates
        if len(set(names)) != len(names) or not set(names) - {"none"}:
            raise ConfigError(
                f"candidates is {names}, expected different names and not only 'none'"
            )
        for name in names:
            self.candidate(name)
