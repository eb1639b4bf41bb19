"""FedAvg whose head and batch norms stay on the clients, then fine-tuning."""

from __future__ import annotations

from metadnas_ext.methods.fedavg import FedAvgFineTuned


class FedPer(FedAvgFineTuned):
    """FedPer (Arivazhagan et al., 2019) with FedBN's batch norms (Li et al., ICLR 2021).

    Each client keeps its classifier and its batch norms, statistics included, from round to round;
    the rest is averaged. Clients that take no part start from the mean of what the others have
    kept.
    """

    name = "fedper"
    title = "FedPer + FedBN + fine-tuning"
    training_key = "fedper"
    local_parts = ("head", "bn")
