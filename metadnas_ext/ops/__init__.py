"""Fused operators with a client axis. Each has a pure-torch twin in `reference`."""

from metadnas_ext.ops.cell import cell
from metadnas_ext.ops.mixed_op import batch_norms, mixed_op, packed_shapes
from metadnas_ext.ops.relu_conv_bn import conv3x3_bn, relu_conv_bn
from metadnas_ext.ops.row_optimizers import adam_rows_, sgd_rows_
from metadnas_ext.ops.weighted_mean import weighted_mean

__all__ = [
    "adam_rows_",
    "batch_norms",
    "cell",
    "conv3x3_bn",
    "mixed_op",
    "packed_shapes",
    "relu_conv_bn",
    "sgd_rows_",
    "weighted_mean",
]
