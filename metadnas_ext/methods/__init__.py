"""Meta-DNAS and its rivals, one file each, one interface."""

from metadnas_ext.methods.base import Method, RoundFigures
from metadnas_ext.methods.darts import LocalDARTS
from metadnas_ext.methods.fedavg import FedAvg, FedAvgFineTuned
from metadnas_ext.methods.meta_dnas import MetaDNAS

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (MetaDNAS, FedAvg, FedAvgFineTuned, LocalDARTS)
}
"""By name, in the order of the paper's Table 1."""

__all__ = [
    "METHODS",
    "FedAvg",
    "FedAvgFineTuned",
    "LocalDARTS",
    "MetaDNAS",
    "Method",
    "RoundFigures",
]
