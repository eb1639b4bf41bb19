"""FedAvg on one fixed architecture, without and with local fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods.base import Fallback, Method, RoundFigures
from metadnas_ext.methods.curve import AdaptationCurve
from metadnas_ext.methods.derived import (
    client_result,
    finetune,
    joiner,
    mean_over_clients,
    round_accuracy,
    train_locally,
)
from metadnas_ext.methods.local_parts import LocalParts
from metadnas_ext.methods.survivors import dropped_json, lost_round, without_diverged
from metadnas_ext.nn import NetworkPlan, derived_plan
from metadnas_ext.ops import weighted_mean
from metadnas_ext.placement import to_device
from metadnas_ext.report.result import ClientResult
from metadnas_ext.search import max_cost_genotype
from metadnas_ext.search.cohort import Cohort, ordered
from metadnas_ext.search.training import Evaluation, Watch, evaluate
from metadnas_ext.seeding import generator
from metadnas_ext.space import Architecture


class FedAvg(Method):
    """McMahan et al. (AISTATS 2017): average the clients' weights, one model for all.

    The architecture is fixed by hand, as wide a network as every client can afford: the dearest one
    within the tightest budget (on several kinds of devices: `Federation.common_budget`).
    """

    name = "fedavg"
    title = "FedAvg"
    training_key = "fedavg"
    finetuned = False
    local_parts: ClassVar[tuple[str, ...]] = ()
    """What stays on the clients between rounds."""

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self.genotype = max_cost_genotype(*federation.common_budget())
        self.plan = derived_plan(federation.shape, self.genotype)
        theta = self.plan.initial(1, generator(self.config.run.seed, "weights"))[0]
        self.theta = to_device(theta, federation.device)
        self.running = to_device(self.plan.initial_running(1)[0], federation.device)
        self.local = LocalParts(federation, self.plan, (self.theta, self.running), self.local_parts)

    def state(self) -> dict[str, Tensor]:
        return {"theta": self.theta, "running": self.running} | self.local.state()

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self.theta, self.running = tensors["theta"], tensors["running"]
        self.local.load_state(tensors)

    def shared_genotype(self) -> Architecture | None:
        return self.genotype

    def round(self, index: int) -> RoundFigures:
        sampled = self.federation.sample(index)
        finished, dropped = without_diverged(
            self.federation.cohorts(sampled), lambda group: self._train(group, index)
        )
        numbers = self.theta.numel() + self.running.numel() - self.local.numbers
        message = 4 * numbers  # bytes
        if not finished:
            return lost_round(sampled, dropped, message * len(sampled))
        cohorts, losses, evaluations = zip(*finished, strict=True)
        joined = joiner(cohorts)
        sizes = joined([cohort.train_sizes for cohort in cohorts])
        share = to_device(sizes.to(self.theta.dtype), self.theta.device)
        self.theta = weighted_mean(joined([cohort.theta for cohort in cohorts]), share)
        self.running = weighted_mean(joined([cohort.running for cohort in cohorts]), share)
        self._keep(cohorts)
        val = Evaluation(*(joined(parts) for parts in zip(*evaluations, strict=True)))
        val_loss, val_accuracy = round_accuracy(val)
        return RoundFigures(
            clients=sampled,
            train_loss=mean_over_clients(joined(losses), sizes),
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            bytes_up=message * (len(sampled) - len(dropped)),
            bytes_down=message * len(sampled),
            dropped=dropped_json(dropped),
        )

    def personalise(self, clients: Sequence[int]) -> list[ClientResult]:
        return self._finish(clients, self._own(clients), AdaptationCurve(self.federation))

    def fallback(self, client: int) -> Fallback:
        model = self._own([client])
        return Fallback(
            self.genotype, model.theta[0], model.running[0], "fixed", recalibrated=False
        )

    def _train(self, group: Sequence[int], index: int) -> tuple[Cohort, Tensor, Evaluation]:
        """Local training of some clients from the global model: training losses, validation."""
        cohort, where = self._start(group), f"round {index}"
        losses = self._fit(cohort, self.round_lr(index), where)
        store, size = self.federation.store, self.config.client.batch_size
        return cohort, losses, evaluate(self.plan, cohort, store, "val", size, where)

    def _start(self, clients: Sequence[int]) -> Cohort:
        """Clients with what the server sends and what they have kept."""
        splits = ordered(self.federation.of(clients), self.config.client.batch_size)
        return self.local.cohort(splits, self.theta, self.running)

    def _own(self, clients: Sequence[int]) -> Cohort:
        """Clients with the model that is theirs after all rounds."""
        return self._start(clients)

    def _fit(self, cohort: Cohort, lr: float, where: str) -> Tensor:
        """A round's training of a cohort, in place; mean losses (G) on the CPU."""
        epochs = self.config.client.epochs
        return train_locally(self.federation, self.plan, cohort, epochs, lr, where)

    def _keep(self, cohorts: Sequence[Cohort]) -> None:
        """Stores what stays on a round's clients."""
        self.theta, self.running = self.local.keep(cohorts, self.theta, self.running)

    def _tune(
        self,
        plan: NetworkPlan,
        cohort: Cohort,
        epochs: int,
        lr: float | None,
        key: str,
        watch: Watch | None,
    ) -> Tensor:
        """Fine-tuning of a cohort, in place; mean losses (G) on the CPU."""
        return train_locally(self.federation, plan, cohort, epochs, lr, key, watch)

    def _finish(
        self, clients: Sequence[int], cohort: Cohort, curve: AdaptationCurve, before: int = 0
    ) -> list[ClientResult]:
        """Fine-tunes, if the method does, and evaluates; clients had `before` epochs alone."""
        trained = finetune(
            self.federation,
            dict.fromkeys(clients, self.genotype),
            {c: (cohort.theta[row], cohort.running[row]) for row, c in enumerate(cohort.clients)},
            self.final_epochs if self.finetuned else 0,
            "finetune",
            recalibrated=self.finetuned,
            training=self._tune,
            curve=curve,
            before=before,
        )
        return [client_result(self.federation, c, trained[c], "fixed") for c in clients]


class FedAvgFineTuned(FedAvg):
    """FedAvg, then each client fine-tunes the whole model on its own data.

    Fine-tuning gets the local epochs that other methods spend on adapting and fine-tuning.
    """

    name = "fedavg_ft"
    title = "FedAvg + fine-tuning"
    finetuned = True
