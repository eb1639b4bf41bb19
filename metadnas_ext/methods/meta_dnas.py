"""Meta-DNAS: a meta-learned search space, searched by every client within its own budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metadnas_ext.federated.federation import Federation
from metadnas_ext.meta import Adapted, ServerState, Update, meta_learner, server_step
from metadnas_ext.methods.base import Method, RoundFigures
from metadnas_ext.methods.derived import (
    Trained,
    client_result,
    finetune,
    inherit,
    joiner,
    mean_over_clients,
    round_accuracy,
)
from metadnas_ext.nn import supernet_plan
from metadnas_ext.report.result import ClientResult
from metadnas_ext.search import discretize, objective
from metadnas_ext.search.architect import Architect
from metadnas_ext.search.cohort import Cohort, TrainBatches, ordered
from metadnas_ext.search.training import Evaluation, Training, cohort_of, train
from metadnas_ext.search.trajectory import Trajectory
from metadnas_ext.seeding import generator
from metadnas_ext.space import Genotype, edges

ALPHA_SCALE = 1e-3  # of the random start of α, as in DARTS


class MetaDNAS(Method):
    """Local bilevel search on the clients, a meta-learner on the server.

    By default FOMAML on α with the server's Adam, FedAvg on w; see `server.meta`, `server.meta_on`.
    """

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
        self.learner = meta_learner(self.config.server)
        self.server = ServerState.start(
            self.plan.initial(1, generator(seed, "weights"))[0],
            self.plan.initial_running(1)[0],
            ALPHA_SCALE * alpha,
            self.learner.learned,
        )

    def state(self) -> dict[str, Tensor]:
        return self.server.tensors()

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self.server = ServerState.of(tensors)

    def shared_genotype(self) -> Genotype | None:
        return discretize((self.server.alpha[0], self.server.alpha[1]), self.federation.costs)

    def round(self, index: int) -> RoundFigures:
        sampled = self.federation.sample(index)
        groups = self.federation.cohorts(sampled)
        return self._close(sampled, [self._adapt(group, index) for group in groups])

    def personalise(self, clients: Sequence[int]) -> list[ClientResult]:
        federation, settings = self.federation, self.config.personalise
        cohort, _ = self.search(
            clients,
            settings.adapt_epochs,
            "adapt",
            "personalisation",
            self.server.alpha,
            settings.temperature,
        )
        assert cohort.alpha is not None
        personal: dict[int, Genotype] = {}
        meta: dict[int, Genotype] = {}
        rows = {client: row for row, client in enumerate(cohort.clients)}
        for client, row in rows.items():
            budget = float(federation.budgets[client])
            alpha = cohort.alpha[row]
            personal[client] = discretize((alpha[0], alpha[1]), federation.costs, budget)
            if settings.gate:
                shared = self.server.alpha
                meta[client] = discretize((shared[0], shared[1]), federation.costs, budget)

        def trained(genotypes: dict[int, Genotype]) -> dict[int, Trained]:
            start = {
                client: inherit(
                    self.plan, genotype, cohort.theta[rows[client]], cohort.running[rows[client]]
                )
                for client, genotype in genotypes.items()
            }
            return finetune(federation, genotypes, start, settings.finetune_epochs, "finetune")

        own = trained(personal)
        rival = trained({c: g for c, g in meta.items() if g != personal[c]})
        results = []
        for client in clients:
            if client in rival and rival[client].val > own[client].val:
                results.append(client_result(federation, client, rival[client], "meta"))
            else:
                results.append(client_result(federation, client, own[client], "personal"))
        return results

    def search(
        self,
        clients: Sequence[int],
        epochs: int,
        key: str,
        where: str,
        pull: Tensor | None,
        final_temperature: float = 1.0,
        trajectory: Trajectory | None = None,
    ) -> tuple[Cohort, Tensor]:
        """Local search of some clients from the server's state; their training losses (G).

        `pull`: α that the KL term draws towards, or None. `trajectory` records the search.
        """
        federation, config = self.federation, self.config.client
        splits = ordered(federation.of(clients), config.batch_size)
        cohort = cohort_of(splits, self.server.theta, self.server.running, self.server.alpha)
        batches = TrainBatches(
            federation.store,
            splits,
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
            trajectory,
        )
        how = Training.of(config)
        losses = train(self.plan, cohort, batches, how, where, architect, trajectory)
        return cohort, losses

    def _adapt(self, group: Sequence[int], index: int) -> tuple[Cohort, Tensor, Update, Evaluation]:
        """A round of some clients: their training losses (G), what they send, validation."""
        federation, config, where = self.federation, self.config.client, f"round {index}"
        trajectory = self.learner.trajectory()
        cohort, losses = self.search(
            group,
            config.epochs,
            f"round/{index}",
            where,
            self.server.alpha,
            trajectory=trajectory,
        )
        adapted = Adapted(
            self.plan,
            cohort,
            self.server.theta,
            self.server.alpha,
            config,
            federation.costs,
            federation.budgets[cohort.clients],
            federation.store,
            where,
            trajectory,
        )
        grad, val = self.learner(adapted)
        return cohort, losses, Update.of(cohort, grad), val

    def _close(
        self, sampled: list[int], finished: list[tuple[Cohort, Tensor, Update, Evaluation]]
    ) -> RoundFigures:
        """The server's step and the round's figures, clients in ascending order."""
        cohorts, losses, updates, evaluations = zip(*finished, strict=True)
        joined = joiner(cohorts)
        sizes = joined([cohort.train_sizes for cohort in cohorts])
        alpha = joined([cohort.alpha for cohort in cohorts])
        update = Update(*(joined(parts) for parts in zip(*updates, strict=True)))
        server_step(self.server, update, sizes, self.config.server)
        val = Evaluation(*(joined(parts) for parts in zip(*evaluations, strict=True)))
        cost, _ = objective.cost_ratio(
            objective.mixing_weights(alpha), self.federation.costs, self.federation.budgets[sampled]
        )
        val_loss, val_accuracy = round_accuracy(val)
        server = self.server
        numbers = server.theta.numel() + server.running.numel() + server.alpha.numel()
        return RoundFigures(
            clients=sampled,
            train_loss=mean_over_clients(joined(losses), sizes),
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            bytes_up=update.bytes,
            bytes_down=4 * numbers * len(sampled),
            alpha_entropy=float(objective.entropy(self.server.alpha[None])),
            expected_cost=float(cost.mean()),
            skips=self._skips(),
        )

    def _skips(self) -> float:
        genotype = self.shared_genotype()
        edges_kept = () if genotype is None else (*genotype.normal, *genotype.reduce)
        return float(sum(name == "skip_connect" for name, _ in edges_kept))
