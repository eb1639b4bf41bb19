"""Meta-DNAS and its rivals, one file each, one interface."""

from metadnas_ext.methods.base import Method, RoundFigures
from metadnas_ext.methods.darts import LocalDARTS
from metadnas_ext.methods.ditto import Ditto
from metadnas_ext.methods.fedavg import FedAvg, FedAvgFineTuned
from metadnas_ext.methods.fedavg_head import FedAvgHead
from metadnas_ext.methods.fedper import FedPer
from metadnas_ext.methods.local_only import LocalOnly
from metadnas_ext.methods.meta_dnas import MetaDNAS
from metadnas_ext.methods.per_fedavg import PerFedAvg
from metadnas_ext.methods.random_architecture import RandomArchitecture
from metadnas_ext.methods.shared_alpha import SharedAlpha

TABLE_1 = ("meta_dnas", "fedavg", "fedavg_ft", "darts")
"""The methods of the paper's Table 1, in its order."""

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        *(MetaDNAS, FedAvg, FedAvgFineTuned, LocalDARTS),
        *(FedAvgHead, FedPer, LocalOnly, PerFedAvg, Ditto),
        *(SharedAlpha, RandomArchitecture),
    )
}
"""By name: those of Table 1, then the other rivals."""

__all__ = [
    "METHODS",
    "TABLE_1",
    "Ditto",
    "FedAvg",
    "FedAvgFineTuned",
    "FedAvgHead",
    "FedPer",
    "LocalDARTS",
    "LocalOnly",
    "MetaDNAS",
    "Method",
    "PerFedAvg",
    "RandomArchitecture",
    "RoundFigures",
    "SharedAlpha",
]
