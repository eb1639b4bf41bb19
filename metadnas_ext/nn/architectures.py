"""Plans of the supernet and of discrete networks, and what the latter inherit from the former."""

from __future__ import annotations

from torch import Tensor

from metadnas_ext.nn.blocks import Block, CellPlan, halvings, preprocess_blocks, renamed
from metadnas_ext.nn.plan import NetworkPlan
from metadnas_ext.ops.cell import CELL_INPUTS
from metadnas_ext.space import CellShape, Genotype, NetworkShape, edges
from metadnas_ext.space.primitives import layers


def supernet_plan(shape: NetworkShape) -> NetworkPlan:
    """All candidates on all edges; names as in the public DARTS supernet."""

    graph = edges(shape.nodes)

    def cell_plan(cell: CellShape) -> CellPlan:
        parts = tuple(
            renamed(layer, f"cells.{cell.index}._ops.{edge.index}._ops.{k}.{layer.name}")
            for edge in graph
            for k, candidate in enumerate(shape.candidates)
            for layer in layers(candidate, cell.channels, edge.stride(cell.reduction))
        )
        return CellPlan(
            cell,
            preprocess_blocks(shape, cell),
            Block(parts, cell.channels, halvings(shape, cell.index + 1)),
            tuple(edge.source for edge in graph),
            tuple(edge.target_node for edge in graph),
            (shape.candidates,) * len(graph),
            mixed=True,
        )

    return NetworkPlan(shape, cell_plan)


def derived_plan(shape: NetworkShape, genotype: Genotype) -> NetworkPlan:
    """Two edges a node with one operation each; names as in the public DARTS evaluation network.

    Raises ValueError if the genotype has another number of nodes than `shape`.
    """
    if genotype.nodes != shape.nodes:
        raise ValueError(f"the shape has {shape.nodes} nodes, the genotype {genotype.nodes}")

    def cell_plan(cell: CellShape) -> CellPlan:
        pairs = _pairs(genotype, cell)
        parts = tuple(
            renamed(layer, f"cells.{cell.index}._ops.{index}.{layer.name}")
            for index, (primitive, source) in enumerate(pairs)
            for layer in layers(
                primitive, cell.channels, 2 if cell.reduction and source < CELL_INPUTS else 1
            )
        )
        return CellPlan(
            cell,
            preprocess_blocks(shape, cell),
            Block(parts, cell.channels, halvings(shape, cell.index + 1)),
            tuple(source for _, source in pairs),
            tuple(index // 2 for index in range(len(pairs))),
            tuple((primitive,) for primitive, _ in pairs),
            mixed=False,
        )

    return NetworkPlan(shape, cell_plan)


def inherited_names(
    derived: NetworkPlan, genotype: Genotype, shape: NetworkShape
) -> tuple[dict[str, str], dict[str, str]]:
    """Name in the supernet of each parameter and of each running statistic of the derived net.

    Raises ValueError if the genotype has a candidate that the supernet lacks.
    """
    sources = {(edge.source, edge.target_node): edge.index for edge in edges(shape.nodes)}
    prefixes: dict[str, str] = {}
    for cell in shape.cells():
        for index, (primitive, source) in enumerate(_pairs(genotype, cell)):
            edge = sources[(source, index // 2)]
            if primitive not in shape.candidates:
                known = ", ".join(shape.candidates)
                raise ValueError(f"the supernet has no candidate {primitive!r}, only {known}")
            candidate = shape.candidates.index(primitive)
            prefixes[f"cells.{cell.index}._ops.{index}."] = (
                f"cells.{cell.index}._ops.{edge}._ops.{candidate}."
            )

    def name_in_supernet(name: str) -> str:
        parts = name.split(".")
        prefix = ".".join(parts[:4]) + "."
        return prefixes[prefix] + ".".join(parts[4:]) if prefix in prefixes else name

    return (
        {name: name_in_supernet(name) for name in derived.parameters.slots},
        {name: name_in_supernet(name) for name in derived.running.slots},
    )


def inherit_indices(
    supernet: NetworkPlan, derived: NetworkPlan, genotype: Genotype
) -> tuple[Tensor, Tensor]:
    """Columns of the supernet's flat parameters and statistics that a derived network inherits."""
    names, running_names = inherited_names(derived, genotype, supernet.shape)
    return (
        derived.parameters.index_of(names, supernet.parameters),
        derived.running.index_of(running_names, supernet.running),
    )


def _pairs(genotype: Genotype, cell: CellShape) -> tuple[tuple[str, int], ...]:
    return genotype.reduce if cell.reduction else genotype.normal
