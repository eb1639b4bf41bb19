"""Meta-DNAS: a meta-learned search space, searched by every client within its own budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from metadnas_ext.search import discretize
from metadnas_ext.search.architect import ARCHITECTS, meta_gradient
from metadnas_ext.search.cohort import Cohort, TrainBatches, ordered
from metadnas_ext.search.curvature import alpha_hessian_eigenvalue
from metadnas_ext.search.objective import Objective, entropy
from metadnas_ext.search.relaxations import Relaxation, relaxation_of
from metadnas_ext.search.training import Evaluation, Training, evaluate, recalibrate, train
from metadnas_ext.seeding import generator
from metadnas_ext.space import Architecture, expected_cost

ALPHA_SCALE = 1e-3  # of the random start of α, as in DARTS


@dataclass(frozen=True)
class Adapted:
    """Clients behind their last search.

    epochs: local epochs since the server's state; genotypes: within the budgets; curve: so far.
    """

    cohort: Cohort
    epochs: int
    searched: dict[int, Searched]
    genotypes: dict[int, Architecture]
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
        size = federation.shape.space.alpha_shape
        alpha = torch.randn(size, generator=generator(seed, "alpha"))
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

    def shared_genotype(self) -> Architecture | None:
        return self.genotype(self.server.alpha)

    def genotype(
        self, alpha: Tensor, client: int | None = None, relaxation: Relaxation | None = None
    ) -> Architecture:
        """The best architecture under α (types, E, O) and the skip cap, within the client's budget.

        `relaxation`: of the search behind α, by default that of the last round's end.
        """
        federation, config = self.federation, self.config.client
        budget = None if client is None else float(federation.budgets[client])
        return discretize(
            tuple(alpha),
            federation.costs,
            budget,
            relaxation=relaxation or relaxation_of(config, 1, 1),
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
            key, pull = f"round/{index}", self._pull()
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
        settings = self.config.personalise
        relaxation = relaxation_of(self.config.client, 1, 1, settings.temperature)
        adapted = self._adapt(
            clients, settings.adapt_epochs, "adapt", "personalisation", self._pull(), relaxation
        )
        own = self._finetune(adapted, adapted.genotypes)
        rival: dict[int, Trained] = {}
        if settings.gate:
            meta = {client: self.genotype(self.server.alpha, client) for client in clients}
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
        curve: AdaptationCurve | None = None,
    ) -> tuple[Cohort, Tensor]:
        """Local search of some clients from the server's state; their training losses (G).

        `pull`: α that the KL term draws towards, or None. `warmup`: local epochs of this search in
        which α stays. `curve` follows the search.
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
        budgets = federation.budgets[cohort.clients]
        objective = Objective.of(config, relaxation, federation.costs, budgets, pull)
        architect = ARCHITECTS[config.order](
            self.plan, cohort, config, objective, relaxation, where, warmup
        )
        watch = None
        if curve is not None:
            watch = curve.follow(self.plan, cohort, 0, epochs, relaxation)
        losses = train(self.plan, cohort, batches, Training.of(config), where, architect, watch)
        if relaxation.stochastic:
            # The running statistics are of drawn weights: those of the mixture are others.
            recalibrate(self.plan, cohort, federation.store, config.batch_size, relaxation)
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
        self,
        clients: Sequence[int],
        epochs: int,
        key: str,
        where: str,
        pull: Tensor | None,
        relaxation: Relaxation,
        warmup: int = 0,
    ) -> Adapted:
        """Local search while the temperature falls, and each client's architecture at its end."""
        if epochs == 0:
            relaxation = relaxation.stopped(0.0)
        curve = AdaptationCurve(self.federation)
        cohort, _ = self.search(clients, epochs, key, where, pull, relaxation, warmup, curve)
        assert cohort.alpha is not None
        store, size = self.federation.store, self.config.client.batch_size
        accuracy = evaluate(self.plan, cohort, store, "test", size, None, relaxation).accuracy
        cost = expected_cost(self.federation.costs, *relaxation.mixture(cohort.alpha).chances)
        rows = dict(enumerate(cohort.clients))
        searched = {c: Searched(float(accuracy[row]), float(cost[row])) for row, c in rows.items()}
        genotypes = {c: self.genotype(cohort.alpha[row], c, relaxation) for row, c in rows.items()}
        return Adapted(cohort, epochs, searched, genotypes, curve)

    def _finetune(self, adapted: Adapted, genotypes: dict[int, Architecture]) -> dict[int, Trained]:
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
        server = self.server
        server.theta, server.running, server.alpha = self.local.keep(cohorts, *self._shared())
        val = Evaluation(*(joined(parts) for parts in zip(*evaluations, strict=True)))
        relaxation = self.relaxation(index)
        cost = expected_cost(self.federation.costs, *relaxation.mixture(alpha).chances)
        val_loss, val_accuracy = round_accuracy(val)
        numbers = sum(tensor.numel() for tensor in self._shared()) - self.local.numbers
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


def _skips(genotype: Architecture) -> int:
    return genotype.operations().count("skip_connect")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
