"""Search spaces: primitives, genotypes, geometry and costs."""

from metadnas_ext.space.cost import (
    COUNTED_UNITS,
    CellShape,
    CohortCosts,
    CostTable,
    Edge,
    NetworkShape,
    cheapest_cost,
    cost_table,
    dearest_cost,
    edges,
    expected_cost,
    genotype_cost,
    survival,
)
from metadnas_ext.space.genotype import DARTS_V1, DARTS_V2, Genotype
from metadnas_ext.space.latency import DeviceProfile, Part
from metadnas_ext.space.primitives import PRIMITIVES

__all__ = [
    "COUNTED_UNITS",
    "DARTS_V1",
    "DARTS_V2",
    "PRIMITIVES",
    "CellShape",
    "CohortCosts",
    "CostTable",
    "DeviceProfile",
    "Edge",
    "Genotype",
    "NetworkShape",
    "Part",
    "cheapest_cost",
    "cost_table",
    "dearest_cost",
    "edges",
    "expected_cost",
    "genotype_cost",
    "survival",
]
