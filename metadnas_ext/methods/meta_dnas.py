"""Meta-DNAS: a meta-learned search space, searched by every client within its own budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from metadnas_ext.federated.federation import Federation
from metadnas_ext.meta import Adapted, Update, meta_learner, server_step
from metadnas_ext.methods.base import Fallback, RoundFigures
from metadnas_ext.methods.client_rows import ClientRows
from metadnas_ext.methods.derived import (
    Searched,
    Trained,
    client_result,
    joiner,
    mean_over_clients,
    round_accuracy,
)
from metadnas_ext.methods.searching import Adaptation, Searching
from metadnas_ext.methods.subnetworks import (
    Share,
    mean_over_owners,
    shared_numbers,
    train_subnetworks,
)
from metadnas_ext.methods.survivors import dropped_json, lost_round, without_diverged
from metadnas_ext.report.result import ClientResult
from metadnas_ext.search.cohort import Cohort
from metadnas_ext.search.curvature import alpha_hessian_eigenvalue
from metadnas_ext.search.objective import entropy
from metadnas_ext.search.relaxations import Relaxation, relaxation_of
from metadnas_ext.search.training import Evaluation
from metadnas_ext.space import Architecture, expected_cost, genotype_cost


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
        width = self.server.alpha.numel()
        # What a client's last search has added to the α it was sent.
        self._found = ClientRows("found", federation.seen, width, federation.device)

    @property
    def search_rounds(self) -> int:
        """Rounds in which clients search; in the others each trains its own architecture."""
        wanted = self.config.server.search_rounds
        return self.rounds if wanted is None else min(wanted, self.rounds)

    @property
    def _settles(self) -> bool:
        """Whether clients settle on an architecture before the rounds are over."""
        return self.config.server.search_rounds is not None

    def state(self) -> dict[str, Tensor]:
        return super().state() | (self._found.state() if self._settles else {})

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        own = self._found.names if self._settles else ()
        if self._settles:
            self._found.load_state(tensors)
        super().load_state({name: t for name, t in tensors.items() if name not in own})

    def architecture(self, client: int) -> Architecture:
        """What a client trains in the rounds behind the search, within its budget.

        By the server's α and how far the client's last search led away from it: clients that
        searched long ago have not missed what the server has learned since.
        """
        alpha = self.server.alpha
        if not self._found.knows(client):
            return self.genotype(alpha, client)
        found = self._found.of([client], alpha.flatten())[0].view_as(alpha)
        return self.genotype(self._sent_alpha() + found, client)

    def fallback(self, client: int) -> Fallback:
        if self._settles and self._found.knows(client):
            return self._as_it_is(client, self.architecture(client), "personal")
        return super().fallback(client)

    def relaxation(self, index: int) -> Relaxation:
        """That of a round."""
        rounds = max(1, self.config.server.rounds)
        return relaxation_of(self.config.client, index / rounds, (index + 1) / rounds)

    def round(self, index: int) -> RoundFigures:
        if index >= self.search_rounds:
            return self._subnetwork_round(index)
        sampled = self.federation.sample(index)
        parts, dropped = without_diverged(
            self.federation.cohorts(sampled), lambda group: self._take_part(group, index)
        )
        if not parts:
            return lost_round(sampled, dropped, self._message * len(sampled))
        self._step(index, parts)
        return self._figures(index, sampled, parts, dropped)

    def personalise(self, clients: Sequence[int]) -> list[ClientResult]:
        settled = [c for c in clients if self._settles and self._found.knows(c)]
        own = self._train_as({client: self.architecture(client) for client in settled})
        searched: dict[int, Searched] = {}
        adapted: Adaptation | None = None
        if rest := [client for client in clients if client not in own]:
            adapted = self._search_at_the_end(rest)
            own |= self._finetune(adapted, adapted.genotypes)
            searched = adapted.searched
        rival = self._gate(own, adapted) if self.config.personalise.gate else {}
        results = []
        for client in clients:
            found = searched.get(client)
            if client in rival and rival[client].val > own[client].val:
                result = client_result(self.federation, client, rival[client], "meta", found)
            else:
                result = client_result(self.federation, client, own[client], "personal", found)
            results.append(result)
        return results

    def _search_at_the_end(self, clients: Sequence[int]) -> Adaptation:
        settings = self.config.personalise
        relaxation = relaxation_of(self.config.client, 1, 1, settings.temperature)
        return self._adapt(
            clients,
            settings.adapt_epochs,
            "adapt",
            "personalisation",
            self._pull(),
            relaxation,
            lr=settings.adapt_lr,
        )

    def _gate(self, own: dict[int, Trained], adapted: Adaptation | None) -> dict[int, Trained]:
        """The server's architecture, trained as the clients' own, where it is another one.

        From the searched supernet; where clients settle before the end, the server's weights are
        those of discrete networks, and no search of the client's has to come in between.
        """
        meta = {client: self.genotype(self.server.alpha, client) for client in own}
        differing = {c: g for c, g in meta.items() if g != own[c].genotype}
        if self._settles or adapted is None:
            return self._train_as(differing)
        return self._finetune(adapted, differing)

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
            lr=self.round_lr(index),
            trajectory=trajectory,
        )
        adapted = Adapted(
            self.plan,
            cohort,
            self.server.theta,
            self.server.alpha,
            self.config.client,
            self.federation.cohort_costs(cohort.clients),
            self.federation.cohort_budgets(cohort.clients),
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
        sent = self._sent_alpha().clone()  # the step moves it
        if (index + 1) * client.epochs <= client.alpha_warmup:
            server = replace(server, alpha_lr=0.0)  # its Adam only looks on
        server_step(
            self.server,
            Update(*_join(joined, [part.update for part in parts])),
            joined([cohort.train_sizes for cohort in cohorts]),
            server,
            self.relaxation(index).relative,
        )
        self._keep(cohorts)
        if self._settles:
            for cohort in cohorts:
                assert cohort.alpha is not None
                self._found.put(cohort.clients, (cohort.alpha - sent).flatten(1))

    def _sent_alpha(self) -> Tensor:
        """α that every client searches from; 0 where each keeps its own."""
        alpha = self.server.alpha
        return torch.zeros_like(alpha) if "alpha" in self.config.server.local else alpha

    def _keep(self, cohorts: Sequence[Cohort]) -> None:
        """Leaves on the clients what is theirs."""
        theta, running, alpha = self.local.keep(cohorts, *self._shared())
        self.server = replace(self.server, theta=theta, running=running, alpha=alpha)

    def _subnetwork_round(self, index: int) -> RoundFigures:
        """Each client trains its architecture; the server averages what several of them have."""
        sampled = self.federation.sample(index)
        genotypes = {client: self.architecture(client) for client in sampled}
        parts, dropped = without_diverged(
            self.federation.cohorts(sampled),
            lambda group: train_subnetworks(
                *(self.federation, self.plan, self._start(group), genotypes),
                self.round_lr(index),
                f"round {index}",
            ),
        )
        stays = self.local.masks(self.server.theta, self.server.running)
        messages = {
            client: 4 * shared_numbers(self.plan, genotype, *stays)
            for client, genotype in genotypes.items()
        }
        if not parts:
            return lost_round(sampled, dropped, sum(messages.values()))
        self._average(parts)
        return self._subnetwork_figures(parts, genotypes, messages, dropped)

    def _average(self, parts: Sequence[Share]) -> None:
        """Each number of θ over the clients whose networks have it."""
        cohorts = [part.cohort for part in parts]
        joined, server = joiner(cohorts), self.server
        sizes = joined([cohort.train_sizes for cohort in cohorts])
        theta = mean_over_owners(
            joined([cohort.theta for cohort in cohorts]),
            joined([part.theta for part in parts]),
            sizes,
            server.theta,
        )
        running = mean_over_owners(
            joined([cohort.running for cohort in cohorts]),
            joined([part.running for part in parts]),
            sizes,
            server.running,
        )
        self.server = replace(server, theta=theta, running=running)
        self._keep(cohorts)

    def _subnetwork_figures(
        self,
        parts: Sequence[Share],
        genotypes: dict[int, Architecture],
        messages: dict[int, int],
        dropped: dict[int, str],
    ) -> RoundFigures:
        """Of the clients that are left; `messages`: bytes of each client's network."""
        federation, cohorts = self.federation, [part.cohort for part in parts]
        joined = joiner(cohorts)
        sizes = joined([cohort.train_sizes for cohort in cohorts])
        left = [client for client in genotypes if client not in dropped]
        costs = [genotype_cost(federation.costs_of(c), genotypes[c]) for c in left]
        budgets = federation.budgets[left].tolist()
        val = Evaluation(*_join(joined, [part.val for part in parts]))
        val_loss, val_accuracy = round_accuracy(val)
        return RoundFigures(
            clients=list(genotypes),
            train_loss=mean_over_clients(joined([part.losses for part in parts]), sizes),
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            bytes_up=sum(messages[client] for client in left),
            bytes_down=sum(messages.values()),
            expected_cost=None if federation.unit is None else _mean(costs),
            budget_use=_mean([c / b for c, b in zip(costs, budgets, strict=True)]),
            skips=float(_skips(self.genotype(self.server.alpha))),
            client_skips=_mean([_skips(genotypes[client]) for client in left]),
            dropped=dropped_json(dropped),
        )

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
        cost = expected_cost(federation.cohort_costs(left), *chances).cpu()
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
                [_skips(self.genotype(a, c)) for a, c in zip(alpha.cpu(), left, strict=True)]
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
