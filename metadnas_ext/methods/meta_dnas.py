"""Meta-DNAS: a meta-learned search space, searched by every client within its own budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metadnas_ext.federated.federation import Federation
from metadnas_ext.meta import ServerState, server_step
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
from metadnas_ext.search.architect import Architect, meta_gradient
from metadnas_ext.search.cohort import Cohort, TrainBatches, ordered
from metadnas_ext.search.training import Evaluation, Training, cohort_of, train
from metadnas_ext.seeding import generator
from metadnas_ext.space import Architecture

ALPHA_SCALE = 1e-3  # of the random start of α, as in DARTS


class MetaDNAS(Method):
    """FOMAML on α with the server's Adam, FedAvg on w, local bilevel search on the clients."""

    name = "meta_dnas"
    title = "Meta-DNAS"
    training_key = "meta_dnas"

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self.plan = supernet_plan(federation.shape)
        seed = self.config.run.seed
        size = federation.shape.space.alpha_shape
        alpha = torch.randn(size, generator=generator(seed, "alpha"))
        self.server = ServerState.start(
            self.plan.initial(1, generator(seed, "weights"))[0],
            self.plan.initial_running(1)[0],
            ALPHA_SCALE * alpha,
        )

    def state(self) -> dict[str, Tensor]:
        return self.server.tensors()

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self.server = ServerState(**tensors)

    def shared_genotype(self) -> Architecture | None:
        return discretize(tuple(self.server.alpha), self.federation.costs)

    def round(self, index: int) -> RoundFigures:
        sampled = self.federation.sample(index)
        where = f"round {index}"
        finished: list[tuple[Cohort, Tensor, Tensor, Evaluation]] = []
        for group in self.federation.cohorts(sampled):
            cohort, losses = self.search(
                group, self.config.client.epochs, f"round/{index}", where, self.server.alpha
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
        personal: dict[int, Architecture] = {}
        meta: dict[int, Architecture] = {}
        rows = {client: row for row, client in enumerate(cohort.clients)}
        for client, row in rows.items():
            budget = float(federation.budgets[client])
            alpha = cohort.alpha[row]
            personal[client] = discretize(tuple(alpha), federation.costs, budget)
            if settings.gate:
                shared = self.server.alpha
                meta[client] = discretize(tuple(shared), federation.costs, budget)

        def trained(genotypes: dict[int, Architecture]) -> dict[int, Trained]:
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
    ) -> tuple[Cohort, Tensor]:
        """Local search of some clients from the server's state; their training losses (G).

        `pull`: α that the KL term draws towards, or None.
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
        )
        losses = train(self.plan, cohort, batches, Training.of(config), where, architect)
        return cohort, losses

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
            bytes_up=4 * numbers * len(sampled),
            bytes_down=4 * numbers * len(sampled),
            alpha_entropy=float(objective.entropy(self.server.alpha[None])),
            expected_cost=float(cost.mean()),
            skips=self._skips(),
        )

    def _skips(self) -> float:
        genotype = self.shared_genotype()
        return float(0 if genotype is None else genotype.operations().count("skip_connect"))
