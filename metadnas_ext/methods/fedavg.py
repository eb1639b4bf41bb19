"""FedAvg on one fixed architecture, without and with local fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods.base import Fallback, RoundFigures
from metadnas_ext.methods.client_rows import ClientRows
from metadnas_ext.methods.curve import AdaptationCurve
from metadnas_ext.methods.derived import client_result, finetune, train_locally
from metadnas_ext.methods.exchange import (
    METRICS,
    Form,
    Part,
    Reply,
    least_values,
    mean_over_clients,
    metric,
    replies_of,
    stacked,
    training_metrics,
    weights,
)
from metadnas_ext.methods.local_parts import LocalParts
from metadnas_ext.methods.rounds import Rounds
from metadnas_ext.methods.survivors import dropped_json, lost_round
from metadnas_ext.nn import NetworkPlan, derived_plan
from metadnas_ext.ops import weighted_mean
from metadnas_ext.placement import to_device
from metadnas_ext.report.result import ClientResult
from metadnas_ext.search import max_cost_genotype
from metadnas_ext.search.cohort import Cohort, ordered
from metadnas_ext.search.training import Watch, evaluate
from metadnas_ext.seeding import generator
from metadnas_ext.space import Architecture

SENT = ("theta", "running")
"""What passes between server and clients."""


class FedAvg(Rounds):
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

    @property
    def client_rows(self) -> tuple[ClientRows, ...]:
        return self.local.client_rows

    def server_state(self) -> dict[str, Tensor]:
        return {"theta": self.theta, "running": self.running}

    def load_server_state(self, tensors: dict[str, Tensor]) -> None:
        self.theta, self.running = tensors["theta"], tensors["running"]

    def shared(self, final: bool) -> dict[str, Tensor]:
        sent = (self.theta, self.running)
        return dict(zip(SENT, sent if final else self.local.hidden(*sent), strict=True))

    def receive(self, tensors: dict[str, Tensor]) -> None:
        self.load_server_state(tensors)

    def shared_genotype(self) -> Architecture | None:
        return self.genotype

    def work(self, index: int, clients: Sequence[int]) -> Part:
        cohort, where = self._start(clients, final=False), f"round {index}"
        losses = self._fit(cohort, self.round_lr(index), where)
        store, size = self.federation.store, self.config.client.batch_size
        val = evaluate(self.plan, cohort, store, "val", size, where)
        sent = self.local.sent(cohort.theta, cohort.running)
        replies = replies_of(
            cohort, dict(zip(SENT, sent, strict=True)), training_metrics(losses, val)
        )
        return Part(cohort.clients, replies, self._kept(cohort))

    def form(self, index: int, client: int, architecture: Architecture | None) -> Form:
        if architecture is not None:
            raise ValueError("architecture is given, expected none: all have the same")
        return Form(least_values(self.plan, self.theta.dtype), METRICS)

    def step(self, index: int, replies: Sequence[Reply]) -> None:
        share = to_device(weights(replies).to(self.theta.dtype), self.theta.device)
        self.theta = weighted_mean(stacked(replies, "theta"), share)
        self.running = weighted_mean(stacked(replies, "running"), share)

    def collected(self) -> None:
        self.theta, self.running = self.local.with_means(self.theta, self.running)

    def figures(
        self,
        index: int,
        sampled: list[int],
        replies: Sequence[Reply],
        dropped: Mapping[int, str],
    ) -> RoundFigures:
        numbers = self.theta.numel() + self.running.numel() - self.local.numbers
        message = 4 * numbers  # bytes
        if not replies:
            return lost_round(sampled, dropped, message * len(sampled))
        images = metric(replies, "val_images")
        return RoundFigures(
            clients=sampled,
            train_loss=mean_over_clients(replies, "train_loss", weights(replies)),
            val_loss=mean_over_clients(replies, "val_loss", images),
            val_accuracy=mean_over_clients(replies, "val_accuracy", images),
            bytes_up=message * len(replies),
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

    def _start(self, clients: Sequence[int], *, final: bool) -> Cohort:
        """Clients with what the server sends, in a round or behind the last, and have kept."""
        splits = ordered(self.federation.of(clients), self.config.client.batch_size)
        return self.local.cohort(splits, self.theta, self.running, final=final)

    def _own(self, clients: Sequence[int]) -> Cohort:
        """Clients with the model that is theirs after all rounds."""
        return self._start(clients, final=True)

    def _fit(self, cohort: Cohort, lr: float, where: str) -> Tensor:
        """A round's training of a cohort, in place; mean losses (G) on the CPU."""
        epochs = self.config.client.epochs
        return train_locally(self.federation, self.plan, cohort, epochs, lr, where)

    def _kept(self, cohort: Cohort) -> dict[str, Tensor]:
        """What a round's clients keep, by the name of the rows."""
        return self.local.kept(cohort)

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
