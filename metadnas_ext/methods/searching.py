"""What all methods that search share: a supernet's state, local search from it, its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metadnas_ext.federated.federation import Federation
from metadnas_ext.meta import LEARNED, ServerState, Update
from metadnas_ext.methods.base import Fallback, Method
from metadnas_ext.methods.client_rows import ClientRows
from metadnas_ext.methods.curve import AdaptationCurve
from metadnas_ext.methods.derived import Searched, Trained, finetune, inherited, local_batches
from metadnas_ext.methods.local_parts import LocalParts
from metadnas_ext.nn import supernet_plan
from metadnas_ext.placement import to_device
from metadnas_ext.report.result import Kept
from metadnas_ext.search import discretize
from metadnas_ext.search.architect import ARCHITECTS
from metadnas_ext.search.cohort import Cohort, ordered
from metadnas_ext.search.finite import check_update
from metadnas_ext.search.objective import Objective
from metadnas_ext.search.relaxations import Relaxation, relaxation_of
from metadnas_ext.search.training import Training, evaluate, recalibrate, train
from metadnas_ext.search.trajectory import Trajectory
from metadnas_ext.seeding import generator
from metadnas_ext.space import Architecture, expected_cost

ALPHA_SCALE = 1e-3  # of the random start of α, as in DARTS


@dataclass(frozen=True)
class Adaptation:
    """Clients behind their last search.

    epochs: local epochs since the server's state; genotypes: within the budgets; curve: so far.
    """

    cohort: Cohort
    epochs: int
    searched: dict[int, Searched]
    genotypes: dict[int, Architecture]
    curve: AdaptationCurve


class Searching(Method):
    """A server's state θ = (w, α), from which clients search with parts of their own."""

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self.plan = supernet_plan(federation.shape)
        seed = self.config.run.seed
        size = federation.shape.space.alpha_shape
        start = (
            self.plan.initial(1, generator(seed, "weights"))[0],
            self.plan.initial_running(1)[0],
            ALPHA_SCALE * torch.randn(size, generator=generator(seed, "alpha")),
        )
        theta, running, alpha = (to_device(tensor, federation.device) for tensor in start)
        learned = LEARNED[self.config.server.meta_on]
        self.server = ServerState.start(theta, running, alpha, learned)
        self.local = LocalParts(federation, self.plan, self._shared(), self.config.server.local)

    @property
    def client_rows(self) -> tuple[ClientRows, ...]:
        return self.local.client_rows

    def server_state(self) -> dict[str, Tensor]:
        return self.server.tensors()

    def load_server_state(self, tensors: dict[str, Tensor]) -> None:
        self.server = ServerState.of(tensors)

    def shared(self, final: bool) -> dict[str, Tensor]:
        sent = self._shared()
        return dict(zip(Update._fields, sent if final else self.local.hidden(*sent), strict=True))

    def receive(self, tensors: dict[str, Tensor]) -> None:
        self.server = replace(self.server, **Update(**tensors)._asdict())

    def shared_genotype(self) -> Architecture | None:
        return self.genotype(self.server.alpha)

    def genotype(
        self, alpha: Tensor, client: int | None = None, relaxation: Relaxation | None = None
    ) -> Architecture:
        """The best architecture under α (types, E, O) and the skip cap, within the client's budget.

        `relaxation`: of the search behind α, by default that of the last round's end.
        """
        federation, config = self.federation, self.config.client
        return discretize(
            tuple(alpha.cpu()),
            # Without a budget any client's table will do: it only names the candidates.
            federation.costs_of(client or 0),
            None if client is None else float(federation.budgets[client]),
            relaxation=relaxation or relaxation_of(config, 1, 1),
            max_skips=config.max_skips,
        )

    def fallback(self, client: int) -> Fallback:
        return self._as_it_is(client, self.genotype(self.server.alpha, client), "meta")

    def search(
        self,
        clients: Sequence[int],
        epochs: int,
        key: str,
        where: str,
        pull: Tensor | None,
        relaxation: Relaxation,
        warmup: int = 0,
        lr: float | None = None,
        curve: AdaptationCurve | None = None,
        trajectory: Trajectory | None = None,
        final: bool = False,
    ) -> tuple[Cohort, Tensor]:
        """Local search of some clients from the server's state; training losses (G) on the CPU.

        `pull`: α that the KL term draws towards, or None. `warmup`: local epochs of this search in
        which α stays. `lr` replaces the configured rate of w. `curve` follows the search,
        `trajectory` records it. `final`: behind the last round.
        """
        federation, config = self.federation, self.config.client
        cohort = self._start(clients, final=final)
        batches = local_batches(federation, cohort, epochs, key)
        costs = federation.cohort_costs(cohort.clients)
        budgets = federation.cohort_budgets(cohort.clients)
        objective = Objective.of(config, relaxation, costs, budgets, pull)
        architect = ARCHITECTS[config.order](
            self.plan, cohort, config, objective, relaxation, where, warmup, trajectory
        )
        watch = None
        if curve is not None:
            watch = curve.follow(self.plan, cohort, 0, epochs, relaxation)
        how = Training.of(config, lr)
        losses = train(self.plan, cohort, batches, how, where, architect, watch, trajectory)
        if relaxation.stochastic:
            # The running statistics are of drawn weights: those of the mixture are others.
            recalibrate(self.plan, cohort, federation.store, config.batch_size, relaxation)
            check_update(cohort, where)
        return cohort, losses

    def _as_it_is(self, client: int, genotype: Architecture, kept: Kept) -> Fallback:
        """The client's network of this architecture, with weights as it starts from them."""
        rows = inherited(self.plan, self._start([client], final=True), {client: genotype})
        return Fallback(genotype, *rows[client], kept, recalibrated=True)

    def _start(self, clients: Sequence[int], *, final: bool) -> Cohort:
        """Clients with what the server sends, in a round or behind the last, and have kept."""
        splits = ordered(self.federation.of(clients), self.config.client.batch_size)
        return self.local.cohort(splits, *self._shared(), final=final)

    def _shared(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.server.theta, self.server.running, self.server.alpha

    def _pull(self) -> Tensor | None:
        """What the KL term draws towards: the server's α, if the clients know it."""
        return None if "alpha" in self.config.server.local else self.server.alpha

    def _adapt(
        self,
        clients: Sequence[int],
        epochs: int,
        key: str,
        where: str,
        pull: Tensor | None,
        relaxation: Relaxation,
        warmup: int = 0,
        lr: float | None = None,
    ) -> Adaptation:
        """Local search while the temperature falls, and each client's architecture at its end."""
        if epochs == 0:
            relaxation = relaxation.stopped(0.0)
        curve = AdaptationCurve(self.federation)
        cohort, _ = self.search(
            clients, epochs, key, where, pull, relaxation, warmup, lr, curve, final=True
        )
        assert cohort.alpha is not None
        store, size = self.federation.store, self.config.client.batch_size
        accuracy = evaluate(self.plan, cohort, store, "test", size, None, relaxation).accuracy
        costs = self.federation.cohort_costs(cohort.clients)
        cost = expected_cost(costs, *relaxation.mixture(cohort.alpha).chances).cpu()
        alpha, rows = cohort.alpha.cpu(), dict(enumerate(cohort.clients))
        searched = {c: Searched(float(accuracy[row]), float(cost[row])) for row, c in rows.items()}
        genotypes = {c: self.genotype(alpha[row], c, relaxation) for row, c in rows.items()}
        return Adaptation(cohort, epochs, searched, genotypes, curve)

    def _train_as(self, genotypes: dict[int, Architecture]) -> dict[int, Trained]:
        """Networks that inherit from the supernets clients start with, for all final epochs."""
        if not genotypes:
            return {}
        return finetune(
            self.federation,
            genotypes,
            inherited(self.plan, self._start(list(genotypes), final=True), genotypes),
            self.final_epochs,
            "finetune",
            curve=AdaptationCurve(self.federation),
        )

    def _finetune(
        self, adapted: Adaptation, genotypes: dict[int, Architecture]
    ) -> dict[int, Trained]:
        """Networks that inherit from the clients' adapted supernets, fine-tuned."""
        return finetune(
            self.federation,
            genotypes,
            inherited(self.plan, adapted.cohort, genotypes),
            self.config.personalise.finetune_epochs,
            "finetune",
            curve=adapted.curve.copy(),
            before=adapted.epochs,
        )
