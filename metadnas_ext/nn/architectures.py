"""Plans of the supernet and of discrete networks, and what the latter inherit from the former."""

from __future__ import annotations

from torch import Tensor

from metadnas_ext.nn.blocks import Block, module_block, prefixed
from metadnas_ext.nn.composed import ComposedCell, PlannedEdge, composed_edge
from metadnas_ext.nn.plan import NetworkPlan
from metadnas_ext.nn.stages import FusedCell, ModuleStage, Stage
from metadnas_ext.space import Architecture, CellShape, NASBench201Shape, NetworkShape, Shape
from metadnas_ext.space.shape import SearchedCell


def supernet_plan(shape: Shape) -> NetworkPlan:
    """All candidates on all edges; names as in the space's public supernet."""
    return NetworkPlan(shape, _stages(shape, None))


def derived_plan(shape: Shape, genotype: Architecture) -> NetworkPlan:
    """One operation on each edge that the genotype keeps; names as in the public networks.

    Raises ValueError if the genotype is of another space, or has another number of nodes or a
    candidate that `shape` lacks.
    """
    shape.space.choices(genotype)  # raises on what is no architecture: None would be a supernet
    return NetworkPlan(shape, _stages(shape, genotype))


def inherited_names(
    derived: NetworkPlan, genotype: Architecture, shape: Shape
) -> tuple[dict[str, str], dict[str, str]]:
    """Name in the supernet of each parameter and of each running statistic of the derived net.

    Raises ValueError if the genotype has a candidate that the supernet lacks.
    """
    prefixes: dict[str, str] = {}
    for cell in shape.cells():
        chosen = [c for c in shape.space.choices(genotype) if c.type == cell.type]
        for position, choice in enumerate(chosen):
            edge = shape.space.edges[choice.edge]
            prefixes[cell.derived_prefix(position)] = cell.supernet_prefix(edge, choice.column)

    def name_in_supernet(name: str) -> str:
        parts = name.split(".")
        prefix = ".".join(parts[:4])  # cells.<cell>.<list>.<position>
        return ".".join([prefixes[prefix], *parts[4:]]) if prefix in prefixes else name

    return (
        {name: name_in_supernet(name) for name in derived.parameters.slots},
        {name: name_in_supernet(name) for name in derived.running.slots},
    )


def inherit_indices(
    supernet: NetworkPlan, derived: NetworkPlan, genotype: Architecture
) -> tuple[Tensor, Tensor]:
    """Columns of the supernet's flat parameters and statistics that a derived network inherits."""
    names, running_names = inherited_names(derived, genotype, supernet.shape)
    return (
        derived.parameters.index_of(names, supernet.parameters),
        derived.running.index_of(running_names, supernet.running),
    )


def _stages(shape: Shape, genotype: Architecture | None) -> list[Stage]:
    """Everything between stem and classifier, of a supernet or of a discrete network."""
    if isinstance(shape, NASBench201Shape):
        return _bench_stages(shape, genotype)
    assert isinstance(shape, NetworkShape)
    return [_darts_cell(shape, cell, genotype) for cell in shape.cells()]


def _planned(shape: Shape, cell: SearchedCell, genotype: Architecture | None) -> list[PlannedEdge]:
    """The edges of a cell: all of the space, or those that the genotype keeps."""
    space = shape.space
    if genotype is None:
        columns = range(len(space.candidates))
        return [
            PlannedEdge(
                edge, space.candidates, tuple(cell.supernet_prefix(edge, k) for k in columns)
            )
            for edge in space.edges
        ]
    chosen = [choice for choice in space.choices(genotype) if choice.type == cell.type]
    return [
        PlannedEdge(
            space.edges[choice.edge],
            (space.candidates[choice.column],),
            (cell.derived_prefix(position),),
        )
        for position, choice in enumerate(chosen)
    ]


def _darts_cell(
    shape: NetworkShape, cell: CellShape, genotype: Architecture | None
) -> FusedCell | ComposedCell:
    edges = _planned(shape, cell, genotype)
    parts = [
        prefixed(f"cells.{cell.index}.preprocess{i}", layers)
        for i, layers in enumerate(cell.preprocess())
    ]
    halvings = _halvings(shape, cell.index)
    first, second = (Block(named, cell.channels, halvings) for named in parts)
    inside = halvings + int(cell.reduction)
    if shape.partial > 1 or not all(edge.fused(shape.space) for edge in edges):
        composed = tuple(composed_edge(shape.space, cell, edge, inside) for edge in edges)
        nodes = tuple(range(shape.nodes))
        return ComposedCell(
            cell.type, (first, second), composed, nodes, len(shape.candidates), genotype is None
        )
    own = tuple(part for edge in edges for part in edge.parts(shape.space, cell))
    return FusedCell(
        cell,
        (first, second),
        Block(own, cell.channels, inside),
        tuple(edge.edge.source for edge in edges),
        tuple(edge.edge.target_node for edge in edges),
        tuple(edge.candidates for edge in edges),
        mixed=genotype is None,
    )


def _bench_stages(shape: NASBench201Shape, genotype: Architecture | None) -> list[Stage]:
    """Cells, a residual block in front of the second and of the third stage, norm and ReLU."""
    stages: dict[int, Stage] = {}
    for block in shape.reductions():
        prefix = f"cells.{block.index}"
        stages[block.index] = ModuleStage(module_block(prefix, block.template(), 0))
    for cell in shape.cells():
        edges = _planned(shape, cell, genotype)
        composed = tuple(composed_edge(shape.space, cell, edge, 0) for edge in edges)
        last = composed[-1].target
        stages[cell.index] = ComposedCell(
            cell.type, (), composed, (last,), len(shape.candidates), genotype is None
        )
    head = ModuleStage(module_block("lastact", shape.head_template(), 0))
    return [*(stages[index] for index in sorted(stages)), head]


def _halvings(shape: NetworkShape, cells: int) -> int:
    """Reductions among the first `cells` cells."""
    return sum(index < cells for index in shape.reductions())
