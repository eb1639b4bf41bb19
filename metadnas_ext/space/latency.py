"""Measured latency: the parts a network's time is the sum of, and the cost table made of them.

The model is additive, as in Cai et al., "ProxylessNAS" (ICLR 2019): stem + head + rest + of every
cell its two preprocessings, the cell as such, and one time for each kept edge, LUT[cell, edge,
candidate].
`metadnas_ext.profiling` measures the parts on a device.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metadnas_ext.errors import ConfigError
from metadnas_ext.files import write_json
from metadnas_ext.space.candidates import FUSED
from metadnas_ext.space.cell_space import Edge
from metadnas_ext.space.cost import CostTable
from metadnas_ext.space.darts import CellShape, NetworkShape
from metadnas_ext.space.shape import Shape

FORMAT = "metadnas device profile, version 1"
STEM, HEAD, CELL, PREPROCESS, REST = "stem", "head", "cell", "preprocess", "rest"


class Part(NamedTuple):
    """What takes time in a network, on inputs of `size` x `size` pixels.

    `name` is a candidate, or one of STEM, HEAD, PREPROCESS (of one cell input), CELL (what a cell
    takes whatever is on its edges) and REST (what a network takes beside its parts). A candidate's
    time is for one edge.
    """

    name: str
    channels_in: int
    channels: int
    size: int
    stride: int


def timed(shape: Shape) -> NetworkShape:
    """The shape, if the model covers it: fused candidates on all channels of DARTS cells.

    ConfigError otherwise.
    """
    if not isinstance(shape, NetworkShape):
        raise ConfigError("device profiles are of DARTS cells; others count in macs or params")
    if shape.partial != 1:
        raise ConfigError(f"space.partial is {shape.partial}: device profiles are of 1")
    own = [name for name in shape.candidates if name not in FUSED]
    if own:
        raise ConfigError(
            f"device profiles are of the built-in candidates; {', '.join(own)} can count in macs "
            f"or params"
        )
    return shape


def fixed_parts(shape: NetworkShape) -> Counter[Part]:
    """The parts that every network of this shape has, and how often."""
    size = shape.image_size
    parts = Counter(
        [
            Part(STEM, shape.image_channels, shape.stem_channels, size, 1),
            Part(HEAD, shape.head_channels, shape.classes, shape.cells()[-1].size_out, 1),
            rest_part(shape),
        ]
    )
    before_last = size
    for cell in shape.cells():
        # Where a reduction came in between, the older input is still larger.
        parts[
            Part(
                PREPROCESS,
                cell.channels_prev_prev,
                cell.channels,
                before_last if cell.reduction_prev else cell.size_in,
                2 if cell.reduction_prev else 1,
            )
        ] += 1
        parts[Part(PREPROCESS, cell.channels_prev, cell.channels, cell.size_in, 1)] += 1
        parts[_cell_part(cell)] += 1
        before_last = cell.size_in
    return parts


def rest_part(shape: NetworkShape) -> Part:
    return Part(REST, shape.image_channels, shape.classes, shape.image_size, 1)


def edge_part(cell: CellShape, edge: Edge, candidate: str) -> Part:
    """The candidate on one edge of the cell."""
    return Part(candidate, cell.channels, cell.channels, cell.size(edge), cell.stride(edge))


def all_parts(shape: NetworkShape) -> list[Part]:
    """Everything that has to be measured for networks of this shape, each once."""
    parts = list(fixed_parts(shape))
    for cell in shape.cells():
        for edge in shape.space.edges:
            parts += [edge_part(cell, edge, name) for name in shape.candidates]
    return list(dict.fromkeys(parts))


@dataclass(frozen=True)
class DeviceProfile:
    """Milliseconds of every part of a network's shape, as measured on one device.

    `batch` images on `threads` threads; `machine`, `versions` and `date` say what was measured;
    `check` compares whole networks with the model (see `metadnas_ext.profiling`).
    """

    shape: NetworkShape
    batch: int
    threads: int
    repeats: int
    machine: dict[str, Any]
    versions: dict[str, Any]
    date: str
    ms: dict[Part, float]
    check: dict[str, float | None] | None = None

    def cost_table(self, shape: Shape) -> CostTable:
        """Costs in "ms" for networks of `shape`, whose candidates may be some of the profile's.

        ConfigError naming what differs if the profile is of another shape.
        """
        shape = timed(shape)
        self._check_shape(shape)
        cells = torch.zeros(shape.space.alpha_shape, dtype=torch.float64)
        for cell in shape.cells():
            for edge in shape.space.edges:
                row = [self.ms[edge_part(cell, edge, name)] for name in shape.candidates]
                cells[cell.type, edge.index] += torch.tensor(row, dtype=torch.float64)
        fixed = math.fsum(self.ms[part] * count for part, count in fixed_parts(shape).items())
        return CostTable("ms", cells, fixed, shape.space)

    def save(self, path: Path) -> None:
        """Writes JSON, whole or not at all."""
        parts = [{**part._asdict(), "ms": ms} for part, ms in self.ms.items()]
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        write_json(path, {"format": FORMAT, **data, "shape": asdict(self.shape), "ms": parts})

    @classmethod
    def load(cls, path: str | Path) -> DeviceProfile:
        """The inverse of `save`. ConfigError naming the file if it is missing, or what is wrong."""
        try:
            data = json.loads(Path(path).read_bytes())
        except OSError as error:
            raise ConfigError(f"cannot read the device profile {path}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the device profile {path} is not valid JSON: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ConfigError(
                f"{path} is not a device profile of this version; write one with metadnas profile"
            )
        try:
            return cls._parsed(data)
        except KeyError as error:
            raise ConfigError(f"the device profile {path} is damaged: no {error}") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"the device profile {path} is damaged: {error}") from None

    @classmethod
    def _parsed(cls, data: Mapping[str, Any]) -> DeviceProfile:
        values = {f.name: data[f.name] for f in fields(cls)}
        geometry = dict(values["shape"])
        shape = NetworkShape(**{**geometry, "candidates": tuple(geometry["candidates"])})
        ms = {}
        for entry in values["ms"]:
            part, time = Part(*(entry[name] for name in Part._fields)), entry["ms"]
            if isinstance(time, bool) or not isinstance(time, (int, float)):
                raise TypeError(f"the time of {part.name} is {time!r}, expected a number")
            if not (math.isfinite(time) and time >= 0):
                raise ValueError(f"the time of {part.name} is {time}, expected at least 0")
            ms[part] = float(time)
        missing = [part for part in all_parts(shape) if part not in ms]
        if missing:
            raise ValueError(f"it has no time of {missing[0]}, and {len(missing) - 1} more")
        return cls(**{**values, "shape": shape, "ms": ms})

    def _check_shape(self, shape: NetworkShape) -> None:
        for name in (f.name for f in fields(NetworkShape) if f.name != "candidates"):
            mine, wanted = getattr(self.shape, name), getattr(shape, name)
            if mine != wanted:
                raise ConfigError(
                    f"the device profile was measured with {name} {mine}, the networks have "
                    f"{wanted}; measure again with metadnas profile"
                )
        unknown = [name for name in shape.candidates if name not in self.shape.candidates]
        if unknown:
            raise ConfigError(
                f"the device profile has no times of {', '.join(unknown)}; measure again with "
                f"metadnas profile"
            )


def _cell_part(cell: CellShape) -> Part:
    return Part(CELL, cell.channels, cell.channels, cell.size_in, 2 if cell.reduction else 1)
