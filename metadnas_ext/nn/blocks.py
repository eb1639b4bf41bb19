"""The part a network is planned from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from metadnas_ext.space.modules import ModuleTemplate
from metadnas_ext.space.primitives import BatchNorm, Conv, Part


@dataclass(frozen=True)
class Block:
    """One unit of computation whose parameters are neighbours in the flat row.

    `parts` are its layers by full name, `channels` those of its output, `halvings` the number of
    reductions between the image and its output. `module`: the ordinary module that it is; None: it
    runs on kernels.
    """

    parts: tuple[Part, ...]
    channels: int
    halvings: int
    module: ModuleTemplate | None = None

    @property
    def norms(self) -> tuple[BatchNorm, ...]:
        return tuple(layer for layer in self.parts if isinstance(layer, BatchNorm))

    @property
    def convolutions(self) -> tuple[Conv, ...]:
        return tuple(layer for layer in self.parts if isinstance(layer, Conv))


def module_block(prefix: str, module: ModuleTemplate, halvings: int) -> Block:
    """The block of a module whose tensors are named below `prefix`."""
    return Block(prefixed(prefix, module.parts), module.channels_out, halvings, module)


def prefixed(prefix: str, parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """The parts under their full names; a module that is a batch norm has no name of its own."""
    return tuple(replace(p, name=f"{prefix}.{p.name}" if p.name else prefix) for p in parts)
