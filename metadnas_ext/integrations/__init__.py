"""Meta-DNAS inside other codebases: what a client does there, and ready pairs for some of them."""

from metadnas_ext.integrations.client import (
    Budget,
    LocalSearch,
    SearchSettings,
    accuracy,
    alpha_names,
    derive,
    held_out,
    recalibrate,
    train_epoch,
    weight_parameters,
)

__all__ = [
    "Budget",
    "LocalSearch",
    "SearchSettings",
    "accuracy",
    "alpha_names",
    "derive",
    "held_out",
    "recalibrate",
    "train_epoch",
    "weight_parameters",
]
