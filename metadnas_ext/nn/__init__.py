"""Networks on the fused operators."""

from metadnas_ext.nn.mixed_op import MixedOp
from metadnas_ext.nn.network import DerivedNet, Supernet, inherit_indices
from metadnas_ext.nn.plan import NetworkPlan, derived_plan, supernet_plan

__all__ = [
    "DerivedNet",
    "MixedOp",
    "NetworkPlan",
    "Supernet",
    "derived_plan",
    "inherit_indices",
    "supernet_plan",
]
