"""Fused operators with a client axis. Each has a pure-torch twin in `reference` or
`reference_aggregate`."""

from metadnas_ext.ops.client_weights import (
    geometric_median_weights,
    krum_scores,
    similarity_weights,
    squared_distances,
)
from metadnas_ext.ops.gram import gram
from metadnas_ext.ops.mixed_op import batch_norms, mixed_op, packed_shapes
from metadnas_ext.ops.mixtures import mixtures
from metadnas_ext.ops.rank_mean import median, rank_mean, trimmed_mean
from metadnas_ext.ops.weighted_mean import weighted_mean

__all__ = [
    "batch_norms",
    "geometric_median_weights",
    "gram",
    "krum_scores",
    "median",
    "mixed_op",
    "mixtures",
    "packed_shapes",
    "rank_mean",
    "similarity_weights",
    "squared_distances",
    "trimmed_mean",
    "weighted_mean",
]
