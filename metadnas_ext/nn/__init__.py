"""Networks on the fused operators."""

from metadnas_ext.nn.architectures import derived_plan, inherit_indices, supernet_plan
from metadnas_ext.nn.mixed_op import MixedOp
from metadnas_ext.nn.network import DerivedNet, NASBench201Supernet, Supernet
from metadnas_ext.nn.plan import NetworkPlan

__all__ = [
    "DerivedNet",
    "MixedOp",
    "NASBench201Supernet",
    "NetworkPlan",
    "Supernet",
    "derived_plan",
    "inherit_indices",
    "supernet_plan",
]
