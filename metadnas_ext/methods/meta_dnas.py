"""Meta-DNAS: a meta-learned search space, searched by every client within its own budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
from metadnas_ext.search import discretize
from metadnas_ext.search.architect import ARCHITECTS, meta_gradient
from metadnas_ext.search.cohort import Cohort, TrainBatches, ordered
from metadnas_ext.search.curvature import alpha_hessian_eigenvalue
from metadnas_ext.search.objective import Objective, entropy
from metadnas_ext.search.relaxations import Relaxation, relaxation_of
from metadnas_ext.search.training import Evaluation, Training, cohort_of, recalibrate, train
from metadnas_ext.seeding import generator
from metadnas_ext.space import Genotype, edges, expected_cost

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

    def state(self) -> dict[str, Tensor]:
        return self.server.tensors()

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self.server = ServerState(**tensors)

    def shared_genotype(self) -> Genotype | None:
        return self.genotype(self.server.alpha)

    def genotype(self, alpha: Tensor, client: int | None = None) -> Genotype:
        """The best architecture under α (2, E, O) and the skip cap, within the client's budget."""
        federation, config = self.federation, self.config.client
        budget = None if client is None else float(federation.budgets[client])
        relaxation = relaxation_of(config, 1, 1)
        return discretize(
            (alpha[0], alpha[1]),
            federation.costs,
            budget,
            relaxation=relaxation,
            max_skips=config.max_skips,
        )

    def relaxation(self, index: int) -> Relaxation:
        """That of a round."""
        rounds = max(1, self.config.server.rounds)
        return relaxation_of(self.config.client, index / rounds, (index + 1) / rounds)

    def round(self, index: int) -> RoundFigures:
        sampled = self.federation.sample(index)
        where = f"round {index}"
        relaxation, epochs = self.relaxation(index), self.config.client.epochs
        warmup = max(0, self.config.client.alpha_warmup - index * epochs)
        finished: list[tuple[Cohort, Tensor, Tensor, Evaluation]] = []
        for group in self.federation.cohorts(sampled):
            key, pull = f"round/{index}", self.server.alpha
            cohort, losses = self.search(group, epochs, key, where, pull, relaxation, warmup)
            grad, val = meta_gradient(
                self.plan,
                cohort,
                self.config.client,
                self.federation.costs,
                self.federation.budgets[cohort.clients],
                self.federation.store,
                where,
                relaxation,
            )
            finished.append((cohort, losses, grad, val))
        return self._close(index, sampled, finished)

    def personalise(self, clients: Sequence[int]) -> list[ClientResult]:
        federation, settings = self.federation, self.config.personalise
        cohort, _ = self.search(
            clients,
            settings.adapt_epochs,
            "adapt",
            "personalisation",
            self.server.alpha,
            relaxation_of(self.config.client, 1, 1, settings.temperature),
        )
        assert cohort.alpha is not None
        personal: dict[int, Genotype] = {}
        meta: dict[int, Genotype] = {}
        rows = {client: row for row, client in enumerate(cohort.clients)}
        for client, row in rows.items():
            personal[client] = self.genotype(cohort.alpha[row], client)
            if settings.gate:
                meta[client] = self.genotype(self.server.alpha, client)

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

    def converged(self, history: Sequence[RoundFigures]) -> bool:
        """As of any method; α and its entropy do not move during the warm-up, which is no sign."""
        client = self.config.client
        return super().converged(history[client.alpha_warmup // client.epochs :])

    def search(
        self,
        clients: Sequence[int],
        epochs: int,
        key: str,
        where: str,
        pull: Tensor | None,
        relaxation: Relaxation,
        warmup: int = 0,
    ) -> tuple[Cohort, Tensor]:
        """Local search of some clients from the server's state; their training losses (G).

        `pull`: α that the KL term draws towards, or None. `warmup`: local epochs of this search in
        which α stays.
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
        budgets = federation.budgets[cohort.clients]
        objective = Objective.of(config, relaxation, federation.costs, budgets, pull)
        architect = ARCHITECTS[config.order](
            self.plan, cohort, config, objective, relaxation, where, warmup
        )
        losses = train(self.plan, cohort, batches, Training.of(config), where, architect)
        if relaxation.stochastic:
            # The running statistics are of drawn weights: those of the mixture are others.
            recalibrate(self.plan, cohort, federation.store, config.batch_size, relaxation)
        return cohort, losses

    def _close(
        self,
        index: int,
        sampled: list[int],
        finished: list[tuple[Cohort, Tensor, Tensor, Evaluation]],
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
            self._alpha_lr(index),
        )
        val = Evaluation(*(joined(parts) for parts in zip(*evaluations, strict=True)))
        relaxation = self.relaxation(index)
        cost = expected_cost(self.federation.costs, *relaxation.mixture(alpha).chances)
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
            alpha_entropy=float(entropy(relaxation.log_chances(self.server.alpha[None]))),
            expected_cost=float(cost.mean()),
            skips=float(_skips(self.genotype(self.server.alpha))),
            client_entropy=float(entropy(relaxation.log_chances(alpha)).double().mean()),
            client_skips=_mean(
                [_skips(self.genotype(a, c)) for a, c in zip(alpha, sampled, strict=True)]
            ),
            hessian_eigenvalue=self._hessian(index, cohorts, joined),
        )

    def _alpha_lr(self, index: int) -> float:
        """The server's rate: 0 in rounds that are all warm-up, in which its Adam only looks on."""
        client = self.config.client
        warm = (index + 1) * client.epochs > client.alpha_warmup
        return self.config.server.alpha_lr if warm else 0.0

    def _hessian(
        self, index: int, cohorts: Sequence[Cohort], joined: Callable[[Sequence[Tensor]], Tensor]
    ) -> float | None:
        """Mean over the clients, at the end of their search; None in rounds without it."""
        every = self.config.server.hessian_every
        if every == 0 or (index + 1) % every > 0:
            return None
        eigenvalues = [
            alpha_hessian_eigenvalue(
                self.plan,
                cohort,
                self.relaxation(index),
                self.federation.store,
                self.config.client.batch_size,
                f"round {index}",
                self.config.run.seed,
            )
            for cohort in cohorts
        ]
        return _mean(joined(eigenvalues).tolist())


def _skips(genotype: Genotype) -> int:
    return sum(name == "skip_connect" for name, _ in (*genotype.normal, *genotype.reduce))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
