"""Cells edge by edge: fused candidates beside ordinary modules, or on a part of the channels.

What `ops.cell` does in one pass where every candidate is fused and sees all channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metadnas_ext import ops
from metadnas_ext.nn.blocks import Block, module_block, prefixed
from metadnas_ext.nn.stages import Call
from metadnas_ext.nn.unfused import scaled
from metadnas_ext.space import CellSpace, Edge
from metadnas_ext.space.candidates import FusedCandidate, ModuleCandidate
from metadnas_ext.space.primitives import Part
from metadnas_ext.space.shape import SearchedCell


@dataclass(frozen=True)
class FusedUnit:
    """The fused candidates of an edge, in one mixed operation; `columns` of its mixing weights."""

    block: Block
    candidates: tuple[str, ...]
    columns: tuple[int, ...]
    stride: int

    def __call__(self, call: Call, x: Tensor, weights: Tensor | None) -> Tensor:
        """x (G, N, H, W, C), weights (G, O) or None: a discrete edge."""
        params, running = call.take()
        out, stats = ops.mixed_op(
            x,
            params.new_ones(params.shape[0], 1)
            if weights is None
            else torch.stack([weights[:, column] for column in self.columns], 1),
            params,
            self.candidates,
            stride=self.stride,
            running=running,
            counts=call.counts,
            keep=call.keep,
        )
        call.record(stats)
        return out


@dataclass(frozen=True)
class ModuleUnit:
    """A candidate that is an ordinary module."""

    block: Block
    column: int

    def __call__(self, call: Call, x: Tensor, weights: Tensor | None) -> Tensor:
        return call.module(self.block, x, None if weights is None else weights[:, self.column])


@dataclass(frozen=True)
class ComposedEdge:
    """From a state to a node; the sum of its units.

    With `partial` K > 1 they work on the first 1 / K of the channels; the others go past them, and
    channels are shuffled so that the next edge meets both (Xu et al., "PC-DARTS", ICLR 2020).
    """

    source: int
    target: int
    units: tuple[FusedUnit | ModuleUnit, ...]
    stride: int
    partial: int

    def __call__(self, call: Call, x: Tensor, weights: Tensor | None) -> Tensor:
        """x (G, N, H, W, C), weights (G, O) or None: a discrete edge -> (G, N, H', W', C)."""
        if self.partial == 1:
            return self._mixed(call, x, weights)
        own = x.shape[-1] // self.partial
        mixed = self._mixed(call, x[..., :own].contiguous(), weights)
        past = x[..., own:]
        if self.stride == 2:
            images = past.flatten(0, 1).permute(0, 3, 1, 2)  # (G * N, C - C / K, H, W)
            pooled = F.max_pool2d(images, 2, ceil_mode=True).permute(0, 2, 3, 1)
            past = pooled.reshape(*mixed.shape[:4], -1)
        both = torch.cat([mixed, past], -1)
        return both.view(*mixed.shape[:4], self.partial, own).transpose(-1, -2).flatten(-2)

    def _mixed(self, call: Call, x: Tensor, weights: Tensor | None) -> Tensor:
        first, *rest = (unit(call, x, weights) for unit in self.units)
        for out in rest:
            first = first + out
        return first


@dataclass(frozen=True)
class PlannedEdge:
    """An edge, its candidates, and the prefix below which the tensors of each are named."""

    edge: Edge
    candidates: tuple[str, ...]
    prefixes: tuple[str, ...]

    def fused(self, space: CellSpace) -> bool:
        """Whether the kernels know all its candidates."""
        return all(isinstance(space.candidate(name), FusedCandidate) for name in self.candidates)

    def parts(self, space: CellSpace, cell: SearchedCell) -> tuple[Part, ...]:
        """Parameters and batch norms of all its candidates by full name."""
        stride = cell.stride(self.edge)
        return tuple(
            part
            for name, prefix in zip(self.candidates, self.prefixes, strict=True)
            for part in prefixed(prefix, space.candidate(name).parts(cell.mixed_channels, stride))
        )


def composed_edge(
    space: CellSpace, cell: SearchedCell, planned: PlannedEdge, halvings: int
) -> ComposedEdge:
    """Fused candidates in one unit, every other one in its own.

    Raises ConfigError if a registered primitive does not fit the cell.
    """
    stride, channels = cell.stride(planned.edge), cell.mixed_channels
    fused: list[int] = []
    modules: list[ModuleUnit] = []
    for column, name in enumerate(planned.candidates):
        candidate = space.candidate(name)
        if isinstance(candidate, ModuleCandidate):
            template = candidate.template(channels, stride)
            template.macs(cell.size(planned.edge))  # refuses what does not fit
            block = module_block(planned.prefixes[column], template, halvings)
            modules.append(ModuleUnit(block, column))
        else:
            fused.append(column)
    units: list[FusedUnit | ModuleUnit] = []
    if fused:
        own = PlannedEdge(
            planned.edge,
            tuple(planned.candidates[column] for column in fused),
            tuple(planned.prefixes[column] for column in fused),
        )
        block = Block(own.parts(space, cell), channels, halvings)
        units.append(FusedUnit(block, own.candidates, tuple(fused), stride))
    return ComposedEdge(
        planned.edge.source,
        planned.edge.target_node,
        (*units, *modules),
        stride,
        cell.channels // channels,
    )


@dataclass(frozen=True)
class ComposedCell:
    """A cell of either space.

    `preprocess`: blocks that bring the outputs of the two stages before to the cell's channels; if
    none, the last one's output is the only input. `outputs`: nodes that the output concatenates.
    `mixed` says whether the edges have mixing weights: (G, edges, candidates), or with one column
    more, by which the edge as a whole is multiplied (PC-DARTS' edge normalisation).
    """

    type: int
    preprocess: tuple[Block, ...]
    edges: tuple[ComposedEdge, ...]
    outputs: tuple[int, ...]
    candidates: int
    mixed: bool

    @property
    def blocks(self) -> tuple[Block, ...]:
        return (*self.preprocess, *(unit.block for edge in self.edges for unit in edge.units))

    def __call__(self, call: Call, before_last: Tensor, last: Tensor) -> Tensor:
        states = [last]
        if self.preprocess:
            first, second = self.preprocess
            states = [call.preprocess(first, before_last), call.preprocess(second, last)]
        inputs = len(states)
        weights = call.mixing(self.type) if self.mixed else None
        for e, edge in enumerate(self.edges):  # by target: a node is complete before it is read
            own = None if weights is None else weights[:, e]
            out = edge(call, states[edge.source], own)
            if own is not None and own.shape[1] > self.candidates:
                out = scaled(out, own[:, self.candidates], call.numbers)
            if inputs + edge.target == len(states):
                states.append(out)
            else:
                states[-1] = states[-1] + out
        nodes = [states[inputs + node] for node in self.outputs]
        return nodes[0] if len(nodes) == 1 else torch.cat(nodes, -1)  # (G, N, H', W', C')
