"""FedAvg, then each client trains the classifier on its own data and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from metadnas_ext.methods.derived import local_batches, weight_gradient
from metadnas_ext.methods.fedavg import FedAvgFineTuned
from metadnas_ext.methods.local_parts import head_start
from metadnas_ext.nn import NetworkPlan
from metadnas_ext.search.cohort import Cohort
from metadnas_ext.search.finite import FiniteCheck, check_update
from metadnas_ext.search.training import Training, Watch, mean_losses


class FedAvgHead(FedAvgFineTuned):
    """FedAvg + fine-tuning of the head alone, as FedRep and linear probing do it.

    Batch norms are recalibrated once on the client's training data and stand still from then on:
    the features are a fixed function of the image.
    """

    name = "fedavg_head"
    title = "FedAvg + head fine-tuning"

    def _tune(
        self,
        plan: NetworkPlan,
        cohort: Cohort,
        epochs: int,
        lr: float | None,
        key: str,
        watch: Watch | None,
    ) -> Tensor:
        batches = local_batches(self.federation, cohort, epochs, key)
        first = head_start(plan)
        head = cohort.theta[:, first:].clone()  # (G, H), rows for the optimiser
        optimizer = Training.of(self.config.client, lr).make(head, batches.steps)
        check = FiniteCheck(cohort, key)
        total = head.new_zeros(len(head), dtype=torch.float64)
        for step in range(len(batches)):
            active = batches.active(step)
            losses, grad, _ = weight_gradient(
                plan,
                cohort.theta[:active],
                batches.train(active),
                check,
                running=cohort.running[:active],
            )
            optimizer.step(grad[:, first:].contiguous(), active)
            cohort.theta[:, first:] = head
            total[:active] += losses
            if watch is not None:
                watch(step + 1)
        check.finish()
        check_update(cohort, key)
        return mean_losses(total, batches.steps)
