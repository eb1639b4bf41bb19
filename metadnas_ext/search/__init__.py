"""Local search: architect, penalty, discretisation."""

from metadnas_ext.search.discretize import discretize, max_cost_genotype
from metadnas_ext.search.random_genotype import GenotypeSampler

__all__ = ["GenotypeSampler", "discretize", "max_cost_genotype"]
