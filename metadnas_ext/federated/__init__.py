"""The federation: clients, data splits, budgets, and the engine that runs methods on it."""

from metadnas_ext.federated.federation import Federation

__all__ = ["Federation"]
