"""Named tensors as slices of one flat row per client.

A cohort's parameters are one tensor [G, P]; broadcasting, averaging, optimiser steps, checkpoints
and messages then act on one tensor, and each named parameter is a view.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """Where one named tensor lies in a row."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def end(self) -> int:
        return self.offset + prod(self.shape)


class FlatLayout:
    """Slots of a row, one behind another, in the order given."""

    def __init__(self, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        self.slots: dict[str, Slot] = {}
        self.sizes: list[int] = []  # elements of each slot
        self.size = 0
        for name, shape in shapes:
            if name in self.slots:
                raise ValueError(f"the name {name!r} occurs twice")
            self.slots[name] = Slot(name, shape, self.size)
            self.sizes.append(prod(shape))
            self.size += prod(shape)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of `flat` (..., P), each (..., *shape)."""
        self._check(flat)
        lead = flat.shape[:-1]
        return {
            name: flat[..., slot.offset : slot.end].view((*lead, *slot.shape))
            for name, slot in self.slots.items()
        }

    def flatten(self, tensors: Mapping[str, Tensor], clients: int | None = None) -> Tensor:
        """The inverse of `views`: (P) or, with `clients`, (G, P). Differentiable."""
        lead = () if clients is None else (clients,)
        parts = [tensors[name].reshape(*lead, -1) for name in self.slots]
        return torch.cat(parts, dim=-1) if parts else torch.zeros(*lead, 0)

    def index_of(self, names: Mapping[str, str], other: FlatLayout) -> Tensor:
        """Positions in a row of `other` of this layout's elements, int64 [P].

        `names` maps each name here to the name there; shapes must agree.
        """
        parts = []
        for name, slot in self.slots.items():
            source = other.slots[names[name]]
            if source.shape != slot.shape:
                raise ValueError(
                    f"{name} has shape {slot.shape}, but {source.name} has {source.shape}"
                )
            parts.append(torch.arange(source.offset, source.end))
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)

    def _check(self, flat: Tensor) -> None:
        if flat.shape[-1] != self.size:
            raise ValueError(f"the flat tensor has {flat.shape[-1]} columns, expected {self.size}")
