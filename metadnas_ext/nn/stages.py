"""What a network runs between its stem and its classifier, one stage after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from metadnas_ext import ops
from metadnas_ext.nn.blocks import Block
from metadnas_ext.nn.unfused import run_module
from metadnas_ext.space import CellShape

Weights = tuple[Tensor, ...]
"""Mixing weights of each cell type, each (G, edges, candidates)."""
Slices = Iterator[tuple[Tensor, Tensor | None]]


class Call:
    """One forward pass: hands each block its slices and collects its statistics."""

    def __init__(
        self, slices: Slices, weights: Weights | None, counts: Tensor | None, keep: str
    ) -> None:
        self._slices = slices
        self._weights = weights
        self.counts = counts
        self.keep = keep
        self._stats: list[Tensor] = []

    @cached_property
    def numbers(self) -> list[int] | None:
        """`counts` for what runs client by client; on a GPU this waits for it, once a pass."""
        return None if self.counts is None else self.counts.tolist()

    def take(self) -> tuple[Tensor, Tensor | None]:
        """Parameters (G, L) and running statistics of the next block.

        Blocks run in the order of their parameters.
        """
        return next(self._slices)

    def record(self, stats: Tensor) -> None:
        """The statistics that the block has used, (G, ...)."""
        self._stats.append(stats.flatten(1))

    def statistics(self) -> Tensor:
        return torch.cat(self._stats, dim=1)  # (G, R)

    def mixing(self, cell_type: int) -> Tensor:
        """Mixing weights of the edges of a cell of that type, (G, E, O)."""
        if self._weights is None:
            raise ValueError("this network has mixed edges: weights must not be None")
        return self._weights[cell_type]

    def module(self, block: Block, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """The next block, an ordinary module, on x (G, N, H, W, C), times scale (G)."""
        assert block.module is not None
        params, running = self.take()
        out, stats = run_module(block.module, x, params, running, self.numbers, scale)
        self.record(stats)
        return out

    def preprocess(self, block: Block, x: Tensor) -> Tensor:
        """The next block, ReLU-conv-BN or a factorized reduce, on x (G, N, H, W, C)."""
        params, running = self.take()
        out, stats = ops.relu_conv_bn(
            x,
            params,
            block.channels,
            stride=2 if len(block.convolutions) == 2 else 1,
            running=running,
            counts=self.counts,
        )
        self.record(stats)
        return out


class Stage(Protocol):
    """Activations (G, N, H, W, C) of the two stages before -> its own."""

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Its blocks in the order in which they run."""

    def __call__(self, call: Call, before_last: Tensor, last: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class FusedCell:
    """A DARTS cell of fused candidates: edge e goes from sources[e] to node targets[e].

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

    @property
    def blocks(self) -> tuple[Block, ...]:
        return (*self.preprocess, self.edges)

    def __call__(self, call: Call, before_last: Tensor, last: Tensor) -> Tensor:
        first, second = self.preprocess
        s0, s1 = call.preprocess(first, before_last), call.preprocess(second, last)
        params, running = call.take()
        weights = (
            call.mixing(self.shape.type)
            if self.mixed
            else params.new_ones(params.shape[0], len(self.sources), 1)
        )
        out, stats = ops.cell(
            s0,
            s1,
            weights,
            params,
            self.sources,
            self.targets,
            self.candidates,
            reduction=self.shape.reduction,
            running=running,
            counts=call.counts,
            keep=call.keep,
        )  # (G, N, H, W, nodes * C)
        call.record(stats)
        return out


@dataclass(frozen=True)
class ModuleStage:
    """An ordinary module on the output of the stage before."""

    block: Block

    @property
    def blocks(self) -> tuple[Block, ...]:
        return (self.block,)

    def __call__(self, call: Call, before_last: Tensor, last: Tensor) -> Tensor:
        return call.module(self.block, last)
