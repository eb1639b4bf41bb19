"""Fused operators with a client axis. Each has a pure-torch twin in `reference*`."""

from metadnas_ext.ops.cell import cell
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
from metadnas_ext.ops.relu_conv_bn import conv3x3_bn, relu_conv_bn
from metadnas_ext.ops.row_optimizers import adam_rows_, sgd_rows_
from metadnas_ext.ops.weighted_mean import weighted_mean

__all__ = [
    "adam_rows_",
    "batch_norms",
    "cell",
    "conv3x3_bn",
    "geometric_median_weights",
    "gram",
    "krum_scores",
    "median",
    "mixed_op",
    "mixtures",
    "packed_shapes",
    "rank_mean",
    "relu_conv_bn",
    "sgd_rows_",
    "similarity_weights",
    "squared_distances",
    "trimmed_mean",
    "weighted_mean",
]
