"""Meta-DNAS: a meta-learned search space, searched by every client within its own budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from metadnas_ext.federated.federation import Federation
from metadnas_ext.meta import Adapted, Update, meta_learner, server_step
from metadnas_ext.methods.base import RoundFigures
from metadnas_ext.methods.derived import (
    Trained,
    client_result,
    joiner,
    mean_over_clients,
    round_accuracy,
)
from metadnas_ext.methods.searching import Searching
from metadnas_ext.methods.survivors import dropped_json, lost_round, without_diverged
from metadnas_ext.report.result import ClientResult
from metadnas_ext.search.cohort import Cohort
from metadnas_ext.search.curvature import alpha_hessian_eigenvalue
from metadnas_ext.search.objective import entropy
from metadnas_ext.search.relaxations import Relaxation, relaxation_of
from metadnas_ext.search.training import Evaluation
from metadnas_ext.space import Architecture, expected_cost


class Part(NamedTuple):
    """A group's part of a round.

    Adapted clients, training losses (G), what they send, validation figures, the Hessian's
    eigenvalues (G) if the round has them.
    """

    cohort: Cohort
    losses: Tensor
    update: Update
    val: Evaluation
    sharpness: Tensor | None


class MetaDNAS(Searching):
    """Local bilevel search on the clients, a meta-learner on the server.

    By default FOMAML on α with the server's Adam, FedAvg on w; see `server.meta`, `server.meta_on`.
    """

    name = "meta_dnas"
    title = "Meta-DNAS"
    training_key = "meta_dnas"

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation)
        self.learner = meta_learner(self.config.server)

    def relaxation(self, index: int) -> Relaxation:
        """That of a round."""
        rounds = max(1, self.config.server.rounds)
        return relaxation_of(self.config.client, index / rounds, (index + 1) / rounds)

    def round(self, index: int) -> RoundFigures:
        sampled = self.federation.sample(index)
        parts, dropped = without_diverged(
            self.federation.cohorts(sampled), lambda group: self._take_part(group, index)
        )
        if not parts:
            return lost_round(sampled, dropped, self._message * len(sampled))
        self._step(index, parts)
        return self._figures(index, sampled, parts, dropped)

    def personalise(self, clients: Sequence[int]) -> list[ClientResult]:
        settings = self.config.personalise
        relaxation = relaxation_of(self.config.client, 1, 1, settings.temperature)
        adapted = self._adapt(
            clients,
            settings.adapt_epochs,
            "adapt",
            "personalisation",
            self._pull(),
            relaxation,
            lr=settings.adapt_lr,
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

    def _take_part(self, group: list[int], index: int) -> Part:
        """Some clients' part of a round; the state stays as it is."""
        where, relaxation = f"round {index}", self.relaxation(index)
        epochs = self.config.client.epochs
        trajectory = self.learner.trajectory()
        cohort, losses = self.search(
            group,
            epochs,
            f"round/{index}",
            where,
            self._pull(),
            relaxation,
            warmup=max(0, self.config.client.alpha_warmup - index * epochs),
            trajectory=trajectory,
        )
        adapted = Adapted(
            self.plan,
            cohort,
            self.server.theta,
            self.server.alpha,
            self.config.client,
            self.federation.cohort_costs(cohort.clients),
            self.federation.budgets[cohort.clients],
            self.federation.store,
            where,
            relaxation,
            trajectory,
        )
        grad, val = self.learner(adapted)
        update = Update(*self.local.sent(*Update.of(cohort, grad)))
        return Part(cohort, losses, update, val, self._hessian(cohort, index))

    def _step(self, index: int, parts: Sequence[Part]) -> None:
        """The server's step, and what stays on the clients."""
        cohorts = [part.cohort for part in parts]
        joined = joiner(cohorts)
        client, server = self.config.client, self.config.server
        if (index + 1) * client.epochs <= client.alpha_warmup:
            server = replace(server, alpha_lr=0.0)  # its Adam only looks on
        server_step(
            self.server,
            Update(*_join(joined, [part.update for part in parts])),
            joined([cohort.train_sizes for cohort in cohorts]),
            server,
            self.relaxation(index).relative,
        )
        theta, running, alpha = self.local.keep(cohorts, *self._shared())
        self.server = replace(self.server, theta=theta, running=running, alpha=alpha)

    @property
    def _message(self) -> int:
        """Bytes that the server sends to a client, and a client to the server."""
        return 4 * (sum(tensor.numel() for tensor in self._shared()) - self.local.numbers)

    def _figures(
        self, index: int, sampled: list[int], parts: Sequence[Part], dropped: dict[int, str]
    ) -> RoundFigures:
        """Behind the server's step, of the clients that are left, in ascending order."""
        federation, relaxation = self.federation, self.relaxation(index)
        cohorts, losses, _, vals, sharpness = zip(*parts, strict=True)
        joined = joiner(cohorts)
        left = [client for client in sampled if client not in dropped]
        sizes = joined([cohort.train_sizes for cohort in cohorts])
        alpha = joined([cohort.alpha for cohort in cohorts])
        chances = relaxation.mixture(alpha).chances
        cost = expected_cost(federation.cohort_costs(left), *chances)
        val_loss, val_accuracy = round_accuracy(Evaluation(*_join(joined, vals)))
        return RoundFigures(
            clients=sampled,
            train_loss=mean_over_clients(joined(losses), sizes),
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            bytes_up=self._message * len(left),
            bytes_down=self._message * len(sampled),
            alpha_entropy=float(entropy(relaxation.log_chances(self.server.alpha[None]))),
            expected_cost=None if federation.unit is None else float(cost.mean()),
            budget_use=float((cost / federation.budgets[left]).mean()),
            skips=float(_skips(self.genotype(self.server.alpha))),
            client_entropy=float(entropy(relaxation.log_chances(alpha)).double().mean()),
            client_skips=_mean(
                [_skips(self.genotype(a, c)) for a, c in zip(alpha, left, strict=True)]
            ),
            hessian_eigenvalue=None if None in sharpness else _mean(joined(sharpness).tolist()),
            dropped=dropped_json(dropped),
        )

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


def _join(
    joined: Callable[[Sequence[Tensor]], Tensor], parts: Sequence[tuple[Tensor, ...]]
) -> list[Tensor]:
    """Tuples of tensors, one of each cohort, as one of all clients."""
    return [joined(tensors) for tensors in zip(*parts, strict=True)]


def _skips(genotype: Architecture) -> int:
    return genotype.operations().count("skip_connect")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
