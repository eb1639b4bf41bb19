"""Search spaces: candidates, cells, genotypes, geometry and costs."""

from metadnas_ext.space.candidates import register_primitive
from metadnas_ext.space.cell_space import Architecture, CellSpace, Choice, Edge
from metadnas_ext.space.cost import (
    COUNTED_UNITS,
    CohortCosts,
    CostTable,
    cheapest_cost,
    cost_table,
    dearest_cost,
    expected_cost,
    genotype_cost,
)
from metadnas_ext.space.darts import CellShape, DARTSCells, NetworkShape, edges
from metadnas_ext.space.genotype import DARTS_V1, DARTS_V2, Genotype
from metadnas_ext.space.latency import DeviceProfile, Part
from metadnas_ext.space.nasbench201 import NASBench201Cells, NASBench201Genotype, NASBench201Shape
from metadnas_ext.space.primitives import PRIMITIVES
from metadnas_ext.space.shape import Shape
from metadnas_ext.space.spaces import (
    SPACES,
    architecture_from_json,
    network_shape,
    shape_from_json,
    shape_to_json,
)

__all__ = [
    "COUNTED_UNITS",
    "DARTS_V1",
    "DARTS_V2",
    "PRIMITIVES",
    "SPACES",
    "Architecture",
    "CellShape",
    "CellSpace",
    "Choice",
    "CohortCosts",
    "CostTable",
    "DARTSCells",
    "DeviceProfile",
    "Edge",
    "Genotype",
    "NASBench201Cells",
    "NASBench201Genotype",
    "NASBench201Shape",
    "NetworkShape",
    "Part",
    "Shape",
    "architecture_from_json",
    "cheapest_cost",
    "cost_table",
    "dearest_cost",
    "edges",
    "expected_cost",
    "genotype_cost",
    "network_shape",
    "register_primitive",
    "shape_from_json",
    "shape_to_json",
]
