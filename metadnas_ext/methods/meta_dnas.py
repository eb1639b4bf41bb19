"""Meta-DNAS: a meta-learned search space, searched by every client within its own budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metadnas_ext.federated.federation import Federation
from metadnas_ext.meta import ServerState, server_step
from metadnas_ext.methods.base import Method, RoundFigures
from metadnas_ext.methods.curve import AdaptationCurve
from metadnas_ext.methods.derived import (
    Searched,
    Trained,
    client_result,
    finetune,
    inherited,
    joiner,
    mean_over_clients,
    round_accuracy,
)
from metadnas_ext.methods.local_parts import LocalParts
from metadnas_ext.nn import supernet_plan
from metadnas_ext.report.result import ClientResult
from metadnas_ext.search import discretize, objective
from metadnas_ext.search.architect import Architect, meta_gradient
from metadnas_ext.search.cohort import Cohort, TrainBatches, ordered
from metadnas_ext.search.training import Evaluation, Training, evaluate, train
from metadnas_ext.seeding import generator
from metadnas_ext.space import Genotype, edges

ALPHA_SCALE = 1e-3  # of the random start of α, as in DARTS


@dataclass(frozen=True)
class Adapted:
    """Clients behind their last search, α divided by the temperature it ended at.

    epochs: local epochs since the server's state; genotypes: within the budgets; curve: so far.
    """

    cohort: Cohort
    epochs: int
    searched: dict[int, Searched]
    genotypes: dict[int, Genotype]
    curve: AdaptationCurve


class MetaDNAS(Method):
    """FOMAML on α with the server's Adam, FedAvg on w, local bilevel search on the clients."""

    name = "meta_dnas"
    title = "Meta-DNAS"
    training_key = "meta_dnas"

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self.plan = supernet_plan(federation.shape)
        seed = self.config.run.seed
        alpha = torch.randn(
            2,
            len(edges(federation.shape.nodes)),
            len(federation.shape.candidates),
            generator=generator(seed, "alpha"),
        )
        self.server = ServerState.start(
            self.plan.initial(1, generator(seed, "weights"))[0],
            self.plan.initial_running(1)[0],
            ALPHA_SCALE * alpha,
        )
        self.local = LocalParts(federation, self.plan, self._shared())

    def state(self) -> dict[str, Tensor]:
        return self.server.tensors() | self.local.state()

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        own = self.local.names
        self.server = ServerState(**{name: t for name, t in tensors.items() if name not in own})
        self.local.load_state(tensors)

    def shared_genotype(self) -> Genotype | None:
        return discretize((self.server.alpha[0], self.server.alpha[1]), self.federation.costs)

    def round(self, index: int) -> RoundFigures:
        sampled = self.federation.sample(index)
        where = f"round {index}"
        finished: list[tuple[Cohort, Tensor, Tensor, Evaluation]] = []
        for group in self.federation.cohorts(sampled):
            cohort, losses = self.search(
                group, self.config.client.epochs, f"round/{index}", where, self._pull()
            )
            grad, val = meta_gradient(
                self.plan,
                cohort,
                self.config.client,
                self.federation.costs,
                self.federation.budgets[cohort.clients],
                self.federation.store,
                where,
            )
            finished.append((cohort, losses, grad, val))
        return self._close(sampled, finished)

    def personalise(self, clients: Sequence[int]) -> list[ClientResult]:
        settings = self.config.personalise
        adapted = self._adapt(
            clients, settings.adapt_epochs, "adapt", "personalisation", self._pull()
        )
        own = self._finetune(adapted, adapted.genotypes)
        rival: dict[int, Trained] = {}
        if settings.gate:
            meta = {client: self._within_budget(self.server.alpha, client) for client in clients}
            differing = {c: g for c, g in meta.items() if g != adapted.genotypes[c]}
            rival = self._finetune(adapted, differing)
        results = []
        for client in clients:
            searched = adapted.searched[client]
            if client in rival and rival[client].val > own[client].val:
                result = client_result(self.federation, client, rival[client], "meta", searched)
            else:
                result = client_result(self.federation, client, own[client], "personal", searched)
            results.append(result)
        return results

    def search(
        self,
        clients: Sequence[int],
        epochs: int,
        key: str,
        where: str,
        pull: Tensor | None,
        final_temperature: float = 1.0,
        curve: AdaptationCurve | None = None,
    ) -> tuple[Cohort, Tensor]:
        """Local search of some clients from the server's state; their training losses (G).

        `pull`: α that the KL term draws towards, or None. `curve` follows the search.
        """
        federation, config = self.federation, self.config.client
        cohort = self._start(clients)
        batches = TrainBatches(
            federation.store,
            cohort.splits,
            config.batch_size,
            epochs,
            self.config.data.augment,
            self.config.run.seed,
            key,
        )
        architect = Architect(
            self.plan,
            cohort,
            config,
            federation.costs,
            federation.budgets[cohort.clients],
            pull,
            where,
            final_temperature,
        )
        watch = None
        if curve is not None:
            watch = curve.follow(self.plan, cohort, 0, epochs, final_temperature)
        losses = train(self.plan, cohort, batches, Training.of(config), where, architect, watch)
        return cohort, losses

    def _start(self, clients: Sequence[int]) -> Cohort:
        """Clients with what the server sends and what they have kept."""
        splits = ordered(self.federation.of(clients), self.config.client.batch_size)
        return self.local.cohort(splits, *self._shared())

    def _shared(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.server.theta, self.server.running, self.server.alpha

    def _pull(self) -> Tensor | None:
        """What the KL term draws towards: the server's α, if the clients know it."""
        return None if "alpha" in self.config.server.local else self.server.alpha

    def _adapt(
        self, clients: Sequence[int], epochs: int, key: str, where: str, pull: Tensor | None
    ) -> Adapted:
        """Local search while the temperature falls, and each client's architecture at its end."""
        temperature = self.config.personalise.temperature if epochs else 1.0
        curve = AdaptationCurve(self.federation)
        cohort, _ = self.search(clients, epochs, key, where, pull, temperature, curve)
        assert cohort.alpha is not None
        cohort.alpha = cohort.alpha / temperature
        store, size = self.federation.store, self.config.client.batch_size
        accuracy = evaluate(self.plan, cohort, store, "test", size, None).accuracy
        cost, _ = objective.cost_ratio(
            objective.mixing_weights(cohort.alpha),
            self.federation.costs,
            self.federation.budgets[cohort.clients],
        )
        rows = dict(enumerate(cohort.clients))
        searched = {c: Searched(float(accuracy[row]), float(cost[row])) for row, c in rows.items()}
        genotypes = {c: self._within_budget(cohort.alpha[row], c) for row, c in rows.items()}
        return Adapted(cohort, epochs, searched, genotypes, curve)

    def _within_budget(self, alpha: Tensor, client: int) -> Genotype:
        """The best architecture under alpha (2, E, O) that the client can afford."""
        budget = float(self.federation.budgets[client])
        return discretize((alpha[0], alpha[1]), self.federation.costs, budget)

    def _finetune(self, adapted: Adapted, genotypes: dict[int, Genotype]) -> dict[int, Trained]:
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

    def _close(
        self, sampled: list[int], finished: list[tuple[Cohort, Tensor, Tensor, Evaluation]]
    ) -> RoundFigures:
        """The server's step and the round's figures, clients in ascending order."""
        cohorts, losses, grads, evaluations = zip(*finished, strict=True)
        joined = joiner(cohorts)
        sizes = joined([cohort.train_sizes for cohort in cohorts])
        alpha = joined([cohort.alpha for cohort in cohorts])
        server_step(
            self.server,
            joined([cohort.theta for cohort in cohorts]),
            joined([cohort.running for cohort in cohorts]),
            joined(grads),
            sizes,
            self.config.server.alpha_lr,
        )
        server = self.server
        server.theta, server.running, server.alpha = self.local.keep(cohorts, *self._shared())
        val = Evaluation(*(joined(parts) for parts in zip(*evaluations, strict=True)))
        cost, _ = objective.cost_ratio(
            objective.mixing_weights(alpha), self.federation.costs, self.federation.budgets[sampled]
        )
        val_loss, val_accuracy = round_accuracy(val)
        numbers = sum(tensor.numel() for tensor in self._shared()) - self.local.numbers
        return RoundFigures(
            clients=sampled,
            train_loss=mean_over_clients(joined(losses), sizes),
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            bytes_up=4 * numbers * len(sampled),
            bytes_down=4 * numbers * len(sampled),
            alpha_entropy=float(objective.entropy(self.server.alpha[None])),
            expected_cost=float(cost.mean()),
            skips=self._skips(),
        )

    def _skips(self) -> float:
        genotype = self.shared_genotype()
        edges_kept = () if genotype is None else (*genotype.normal, *genotype.reduce)
        return float(sum(name == "skip_connect" for name, _ in edges_kept))
