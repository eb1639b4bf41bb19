"""Meta-DNAS: a meta-learned search space, searched by every client within its own budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metadnas_ext.federated.federation import Federation
from metadnas_ext.meta import ServerState, server_step
from metadnas_ext.methods.base import Fallback, Method, RoundFigures
from metadnas_ext.methods.curve import AdaptationCurve
from metadnas_ext.methods.derived import (
    Searched,
    Trained,
    client_result,
    finetune,
    inherited,
    joiner,
    local_batches,
    mean_over_clients,
    round_accuracy,
)
from metadnas_ext.methods.local_parts import LocalParts
from metadnas_ext.methods.survivors import dropped_json, lost_round, without_diverged
from metadnas_ext.nn import supernet_plan
from metadnas_ext.report.result import ClientResult, Kept
from metadnas_ext.search import discretize
from metadnas_ext.search.architect import ARCHITECTS, meta_gradient
from metadnas_ext.search.cohort import Cohort, ordered
from metadnas_ext.search.curvature import alpha_hessian_eigenvalue
from metadnas_ext.search.objective import Objective, entropy
from metadnas_ext.search.relaxations import Relaxation, relaxation_of
from metadnas_ext.search.training import (
    Evaluation,
    Training,
    check_update,
    evaluate,
    recalibrate,
    train,
)
from metadnas_ext.seeding import generator
from metadnas_ext.space import Genotype, edges, expected_cost

ALPHA_SCALE = 1e-3  # of the random start of α, as in DARTS


@dataclass(frozen=True)
class Adapted:
    """Clients behind their last search.

    epochs: local epochs since the server's state; genotypes: within the budgets; curve: so far.
    """

    cohort: Cohort
    epochs: int
    searched: dict[int, Searched]
    genotypes: dict[int, Genotype]
    curve: AdaptationCurve


class Part(NamedTuple):
    """A group's part of a round: adapted clients, training losses (G), meta-gradient of α
    (G, 2, E, O), validation figures, Hessian's eigenvalues (G) if the round has them.
    """

    cohort: Cohort
    losses: Tensor
    grad: Tensor
    val: Evaluation
    sharpness: Tensor | None


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
        return self.genotype(self.server.alpha)

    def genotype(
        self, alpha: Tensor, client: int | None = None, relaxation: Relaxation | None = None
    ) -> Genotype:
        """The best architecture under α (2, E, O) and the skip cap, within the client's budget.

        `relaxation`: of the search behind α, by default that of the last round's end.
        """
        federation, config = self.federation, self.config.client
        return discretize(
            (alpha[0], alpha[1]),
            # Without a budget any client's table will do: it only names the candidates.
            federation.costs_of(client or 0),
            None if client is None else float(federation.budgets[client]),
            relaxation=relaxation or relaxation_of(config, 1, 1),
            max_skips=config.max_skips,
        )

    def relaxation(self, index: int) -> Relaxation:
        """That of a round."""
        rounds = max(1, self.config.server.rounds)
        return relaxation_of(self.config.client, index / rounds, (index + 1) / rounds)

    def round(self, index: int) -> RoundFigures:
        sampled = self.federation.sample(index)
        finished, dropped = without_diverged(
            self.federation.cohorts(sampled), lambda group: self._take_part(group, index)
        )
        return self._close(index, sampled, finished, dropped)

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
        batches = local_batches(federation, cohort, epochs, key)
        costs, budgets = federation.cohort_costs(cohort.clients), federation.budgets[cohort.clients]
        objective = Objective.of(config, relaxation, costs, budgets, pull)
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
            check_update(cohort, where)
        return cohort, losses

    def fallback(self, client: int) -> Fallback:
        return self._as_it_is(client, self.genotype(self.server.alpha, client), "meta")

    def _as_it_is(self, client: int, genotype: Genotype, kept: Kept) -> Fallback:
        """The client's network of this architecture, with weights as it starts from them."""
        rows = inherited(self.plan, self._start([client]), {client: genotype})
        return Fallback(genotype, *rows[client], kept, recalibrated=True)

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
        costs = self.federation.cohort_costs(cohort.clients)
        cost = expected_cost(costs, *relaxation.mixture(cohort.alpha).chances)
        rows = dict(enumerate(cohort.clients))
        searched = {c: Searched(float(accuracy[row]), float(cost[row])) for row, c in rows.items()}
        genotypes = {c: self.genotype(cohort.alpha[row], c, relaxation) for row, c in rows.items()}
        return Adapted(cohort, epochs, searched, genotypes, curve)

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

    def _take_part(self, group: list[int], index: int) -> Part:
        """Some clients' part of a round; the state stays as it is."""
        where, relaxation, epochs = (
            f"round {index}",
            self.relaxation(index),
            self.config.client.epochs,
        )
        warmup = max(0, self.config.client.alpha_warmup - index * epochs)
        cohort, losses = self.search(
            group, epochs, f"round/{index}", where, self._pull(), relaxation, warmup
        )
        grad, val = meta_gradient(
            self.plan,
            cohort,
            self.config.client,
            self.federation.cohort_costs(cohort.clients),
            self.federation.budgets[cohort.clients],
            self.federation.store,
            where,
            relaxation,
        )
        return Part(cohort, losses, grad, val, self._hessian(cohort, index))

    def _close(
        self, index: int, sampled: list[int], finished: list[Part], dropped: dict[int, str]
    ) -> RoundFigures:
        """The server's step and the round's figures, clients in ascending order."""
        numbers = sum(tensor.numel() for tensor in self._shared()) - self.local.numbers
        if not finished:
            return lost_round(sampled, dropped, 4 * numbers * len(sampled))
        survivors = [client for client in sampled if client not in dropped]
        cohorts, losses, grads, evaluations, sharpness = zip(*finished, strict=True)
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
        costs, budgets = self.federation.cohort_costs(survivors), self.federation.budgets[survivors]
        cost = expected_cost(costs, *relaxation.mixture(alpha).chances)
        val_loss, val_accuracy = round_accuracy(val)
        return RoundFigures(
            clients=sampled,
            train_loss=mean_over_clients(joined(losses), sizes),
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            bytes_up=4 * numbers * len(survivors),
            bytes_down=4 * numbers * len(sampled),
            alpha_entropy=float(entropy(relaxation.log_chances(self.server.alpha[None]))),
            expected_cost=None if self.federation.unit is None else float(cost.mean()),
            budget_use=float((cost / budgets).mean()),
            skips=float(_skips(self.genotype(self.server.alpha))),
            client_entropy=float(entropy(relaxation.log_chances(alpha)).double().mean()),
            client_skips=_mean(
                [_skips(self.genotype(a, c)) for a, c in zip(alpha, survivors, strict=True)]
            ),
            hessian_eigenvalue=None if None in sharpness else _mean(joined(sharpness).tolist()),
            dropped=dropped_json(dropped),
        )

    def _alpha_lr(self, index: int) -> float:
        """The server's rate: 0 in rounds that are all warm-up, in which its Adam only looks on."""
        client = self.config.client
        warm = (index + 1) * client.epochs > client.alpha_warmup
        return self.config.server.alpha_lr if warm else 0.0

    def _hessian(self, cohort: Cohort, index: int) -> Tensor | None:
        """∇²_α's largest eigenvalues (G) at the end of a search; None in rounds without them."""
        every = self.config.server.hessian_every
        if every == 0 or (index + 1) % every > 0:
            return None
        return alpha_hessian_eigenvalue(
            self.plan,
            cohort,
            self.relaxation(index),
            self.federation.store,
            self.config.client.batch_size,
            f"round {index}",
            self.config.run.seed,
        )


def _skips(genotype: Genotype) -> int:
    return sum(name == "skip_connect" for name, _ in (*genotype.normal, *genotype.reduce))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
