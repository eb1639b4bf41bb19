"""The spaces by name, as configurations and files name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from metadnas_ext.errors import ConfigError
from metadnas_ext.space.cell_space import Architecture, CellSpace
from metadnas_ext.space.darts import DARTSCells, NetworkShape
from metadnas_ext.space.genotype import Genotype
from metadnas_ext.space.nasbench201 import (
    NODES,
    NASBench201Cells,
    NASBench201Genotype,
    NASBench201Shape,
)
from metadnas_ext.space.shape import Shape

SPACES: dict[str, type[CellSpace]] = {"darts": DARTSCells, "nasbench201": NASBench201Cells}
SHAPES: dict[str, type[NetworkShape | NASBench201Shape]] = {
    "darts": NetworkShape,
    "nasbench201": NASBench201Shape,
}


def network_shape(
    space: str,
    *,
    channels: int,
    layers: int,
    nodes: int,
    stem_multiplier: int,
    partial: int,
    candidates: tuple[str, ...],
    classes: int,
    image_size: int,
    image_channels: int,
) -> Shape:
    """Geometry of a network of that space; ConfigError on what does not fit it.

    No `candidates`: all that the space defines. NAS-Bench-201 has 4 nodes, and its stem C channels
    whatever `stem_multiplier`.
    """
    if space == "darts":
        return NetworkShape(
            channels=channels,
            layers=layers,
            nodes=nodes,
            classes=classes,
            image_size=image_size,
            image_channels=image_channels,
            stem_multiplier=stem_multiplier,
            candidates=candidates or tuple(DARTSCells.own),
            partial=partial,
        )
    if nodes != NODES:
        raise ConfigError(f"space.nodes is {nodes}: a cell of NAS-Bench-201 has {NODES}")
    if partial != 1:
        raise ConfigError(f"space.partial is {partial}: partial channels are for DARTS cells")
    return NASBench201Shape(
        channels=channels,
        layers=layers,
        classes=classes,
        image_size=image_size,
        image_channels=image_channels,
        candidates=candidates or tuple(NASBench201Cells.own),
    )


def shape_to_json(shape: Shape) -> dict[str, Any]:
    """Its fields and the name of its space, ready for `json.dump`."""
    name = next(name for name, cls in SHAPES.items() if isinstance(shape, cls))
    assert isinstance(shape, NetworkShape | NASBench201Shape)
    return {"space": name, **asdict(shape)}


def shape_from_json(data: Mapping[str, Any]) -> Shape:
    """The inverse of `shape_to_json`. KeyError, TypeError or ConfigError if malformed."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return SHAPES[values.pop("space")](**values)


def architecture_from_json(data: Mapping[str, object]) -> Architecture:
    """The inverse of any architecture's `to_json`; ValueError on anything else."""
    if isinstance(data, Mapping) and "arch" in data:
        return NASBench201Genotype.from_json(data)
    return Genotype.from_json(data)
