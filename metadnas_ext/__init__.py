"""Federated differentiable architecture search on fused mixed-op kernels with a client axis."""

from metadnas_ext._native import build_info, release_memory
from metadnas_ext.aggregation import aggregate
from metadnas_ext.fuse import FuseReport, fuse, unfuse
from metadnas_ext.models import load_client
from metadnas_ext.space import register_primitive

__version__ = "0.1.0"

__all__ = [
    "FuseReport",
    "__version__",
    "aggregate",
    "build_info",
    "fuse",
    "load_client",
    "register_primitive",
    "release_memory",
    "unfuse",
]
