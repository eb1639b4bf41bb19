"""Ditto: a global model, and beside it one of every client's own that stays near it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metadnas_ext.federated.federation import Federation
from metadnas_ext.methods.client_rows import ClientRows
from metadnas_ext.methods.derived import local_batches, weight_gradient
from metadnas_ext.methods.fedavg import FedAvgFineTuned
from metadnas_ext.nn import NetworkPlan
from metadnas_ext.search.cohort import Cohort, TrainBatches
from metadnas_ext.search.finite import FiniteCheck, check_update
from metadnas_ext.search.training import Training, Watch, mean_losses


@dataclass
class DittoCohort(Cohort):
    """Global models in its own rows; `personal`: the same clients' personal ones."""

    personal: Cohort = field(kw_only=True)


@dataclass(frozen=True)
class Pull:
    """A proximal term strength/2 ‖v - anchor‖² on each client's model: anchor (G, P)."""

    anchor: Tensor
    strength: float


class Ditto(FedAvgFineTuned):
    """Li, Hu, Beirami and Smith (ICML 2021): min over v of f_i(v) + λ/2 ‖v - w‖² on each client.

    In a round a client's batches go to the global model w and to its personal model v in turn: both
    together have the epochs that FedAvg's one model has. v is drawn towards the w that the client
    received. At the end v has the epochs of fine-tuning, drawn towards the last w. A client without
    a v starts it from w.
    """

    name = "ditto"
    title = "Ditto"
    training_key = "ditto"

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        width = self.theta.numel() + self.running.numel()
        self.personal = ClientRows("personal", federation.seen, width, federation.device)

    @property
    def client_rows(self) -> tuple[ClientRows, ...]:
        return (*super().client_rows, self.personal)

    def _start(self, clients: Sequence[int], *, final: bool) -> DittoCohort:
        cohort = super()._start(clients, final=final)
        received = torch.cat([cohort.theta, cohort.running], dim=1)
        theta, running = torch.split(
            self.personal.of(cohort.clients, received), [len(self.theta), len(self.running)], dim=1
        )
        personal = Cohort(cohort.splits, theta.contiguous(), running.contiguous())
        return DittoCohort(cohort.splits, cohort.theta, cohort.running, personal=personal)

    def _own(self, clients: Sequence[int]) -> Cohort:
        return self._start(clients, final=True).personal

    def _fit(self, cohort: Cohort, lr: float, where: str) -> Tensor:
        assert isinstance(cohort, DittoCohort)
        batches = local_batches(self.federation, cohort, self.config.client.epochs, where)
        pull = Pull(cohort.theta.clone(), self.config.rivals.ditto_lambda)
        models = [(cohort, None), (cohort.personal, pull)]
        return take_turns(self.plan, models, batches, Training.of(self.config.client, lr), where)

    def _kept(self, cohort: Cohort) -> dict[str, Tensor]:
        assert isinstance(cohort, DittoCohort)
        rows = torch.cat([cohort.personal.theta, cohort.personal.running], dim=1)
        return super()._kept(cohort) | {self.personal.name: rows}

    def _tune(
        self,
        plan: NetworkPlan,
        cohort: Cohort,
        epochs: int,
        lr: float | None,
        key: str,
        watch: Watch | None,
    ) -> Tensor:
        received = super()._start(cohort.clients, final=True).theta
        pull = Pull(received, self.config.rivals.ditto_lambda)
        batches = local_batches(self.federation, cohort, epochs, key)
        how = Training.of(self.config.client, lr)
        return take_turns(plan, [(cohort, pull)], batches, how, key, watch)


def take_turns(
    plan: NetworkPlan,
    models: Sequence[tuple[Cohort, Pull | None]],
    batches: TrainBatches,
    how: Training,
    where: str,
    watch: Watch | None = None,
) -> Tensor:
    """Trains models of the same clients, in place, each on every len(models)-th batch.

    Returns the mean loss of the first model, (G) on the CPU.
    """
    count = len(models)
    steps = [[-(-(s - turn) // count) for s in batches.steps] for turn in range(count)]
    optimizers = [how.make(model.theta, own) for (model, _), own in zip(models, steps, strict=True)]
    checks = [FiniteCheck(model, where) for model, _ in models]
    total = models[0][0].theta.new_zeros(len(batches.steps), dtype=torch.float64)
    for step in range(len(batches)):
        active, turn = batches.active(step), step % count
        batch, (model, pull) = batches.train(active), models[turn]
        theta = model.theta[:active]
        losses, grad, stats = weight_gradient(plan, theta, batch, checks[turn])
        if pull is not None:
            grad = grad + pull.strength * (theta - pull.anchor[:active])
        optimizers[turn].step(grad, active)
        plan.update_running(model.running[:active], stats, batch.sizes)
        if turn == 0:
            total[:active] += losses
        if watch is not None:
            watch(step + 1)
    for (model, _), check in zip(models, checks, strict=True):
        check.finish()
        check_update(model, where)
    return mean_losses(total, steps[0])
