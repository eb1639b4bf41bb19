"""Local search: architect, penalty, discretisation."""

from metadnas_ext.search.discretize import discretize, max_cost_genotype

__all__ = ["discretize", "max_cost_genotype"]
