"""Meta-DNAS: a meta-learned search space, searched by every client within its own budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metadnas_ext.federated.federation import Federation
from metadnas_ext.meta import Adapted, Update, meta_learner, server_step
from metadnas_ext.methods.base import Fallback, RoundFigures
from metadnas_ext.methods.client_rows import ClientRows
from metadnas_ext.methods.derived import Searched, Trained, client_result
from metadnas_ext.methods.exchange import (
    LARGEST,
    METRICS,
    Form,
    Part,
    Reply,
    least_values,
    mean_over_clients,
    metric,
    replies_of,
    stacked,
    training_metrics,
    weights,
)
from metadnas_ext.methods.rounds import Rounds
from metadnas_ext.methods.searching import Adaptation, Searching
from metadnas_ext.methods.subnetworks import average, shared_numbers, train_subnetworks
from metadnas_ext.methods.survivors import dropped_json, lost_round, without_diverged
from metadnas_ext.nn import NetworkPlan, derived_plan
from metadnas_ext.report.result import BUDGET_TOLERANCE, ClientResult
from metadnas_ext.search.cohort import Cohort
from metadnas_ext.search.curvature import alpha_hessian_eigenvalue
from metadnas_ext.search.objective import entropy
from metadnas_ext.search.relaxations import Relaxation, relaxation_of
from metadnas_ext.space import Architecture, expected_cost, genotype_cost

SEARCH_METRICS = dict.fromkeys(("expected_cost", "entropy", "skips"), (0.0, LARGEST))
SHARPNESS = {"hessian_eigenvalue": (-LARGEST, LARGEST)}
"""What replies of rounds with a search have beside METRICS."""


class MetaDNAS(Rounds, Searching):
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

    @property
    def client_rows(self) -> tuple[ClientRows, ...]:
        return (*super().client_rows, *((self._found,) if self._settles else ()))

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

    def work(self, index: int, clients: Sequence[int]) -> Part:
        if index >= self.search_rounds:
            return self._train_subnetworks(index, clients)
        return self._search(index, clients)

    def form(self, index: int, client: int, architecture: Architecture | None) -> Form:
        dtype = self.server.theta.dtype
        if index >= self.search_rounds:
            return Form(least_values(self._network_of(client, architecture), dtype), METRICS)
        if architecture is not None:
            raise ValueError("architecture is given, expected none: clients still search")
        alpha = torch.full(self.server.alpha.shape, -math.inf, dtype=dtype)
        tensors = least_values(self.plan, dtype)
        metrics = METRICS | SEARCH_METRICS
        if self._measures_sharpness(index):
            metrics |= SHARPNESS
        return Form(tensors | {"alpha": alpha}, metrics)

    def _network_of(self, client: int, architecture: Architecture | None) -> NetworkPlan:
        """ValueError if the client cannot train this architecture within its budget."""
        if architecture is None:
            raise ValueError("architecture is missing")
        budget = float(self.federation.budgets[client])
        cost = genotype_cost(self.federation.costs_of(client), architecture)
        if cost > budget * (1 + BUDGET_TOLERANCE):
            raise ValueError(f"architecture costs {cost:g}, expected at most the budget {budget:g}")
        return derived_plan(self.federation.shape, architecture)

    def step(self, index: int, replies: Sequence[Reply]) -> None:
        if index >= self.search_rounds:
            shared = (self.server.theta, self.server.running)
            theta, running = average(self.plan, replies, *shared)
            self.server = replace(self.server, theta=theta, running=running)
            return
        client, server = self.config.client, self.config.server
        if (index + 1) * client.epochs <= client.alpha_warmup:
            server = replace(server, alpha_lr=0.0)  # its Adam only looks on
        update = Update(*(stacked(replies, name) for name in Update._fields))
        relative = self.relaxation(index).relative
        server_step(self.server, update, weights(replies), server, relative)

    def collected(self) -> None:
        theta, running, alpha = self.local.with_means(*self._shared())
        self.server = replace(self.server, theta=theta, running=running, alpha=alpha)

    def figures(
        self,
        index: int,
        sampled: list[int],
        replies: Sequence[Reply],
        dropped: Mapping[int, str],
    ) -> RoundFigures:
        behind = index >= self.search_rounds
        messages = (
            self._messages(sampled, replies) if behind else dict.fromkeys(sampled, self._message)
        )
        down = sum(messages.values())
        if not replies:
            return lost_round(sampled, dropped, down)
        images = metric(replies, "val_images")
        return RoundFigures(
            clients=sampled,
            train_loss=mean_over_clients(replies, "train_loss", weights(replies)),
            val_loss=mean_over_clients(replies, "val_loss", images),
            val_accuracy=mean_over_clients(replies, "val_accuracy", images),
            bytes_up=sum(messages[reply.client] for reply in replies),
            bytes_down=down,
            skips=float(skips(self.genotype(self.server.alpha))),
            dropped=dropped_json(dropped),
            **(self._network_figures(replies) if behind else self._search_figures(index, replies)),
        )

    def personalise(self, clients: Sequence[int]) -> list[ClientResult]:
        settled = [c for c in clients if self._settles and self._found.knows(c)]
        own = self._train_as({client: self.architecture(client) for client in settled})
        searched: dict[int, Searched] = {}
        adapted: Adaptation | None = None
        if rest := [client for client in clients if client not in own]:
            adapted = self._search_at_the_end(rest)
            own |= self._finetune(adapted, adapted.genotypes)
            searched = adapted.searched
        rival: dict[int, Trained] = {}
        if self.config.personalise.gate and own:
            # A second network that diverges has lost; the client's own is not to go with it.
            parts, _ = without_diverged(
                [list(own)], lambda group: self._gate({c: own[c] for c in group}, adapted)
            )
            rival = {client: trained for part in parts for client, trained in part.items()}
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
        """As of any method; α and its entropy do not move during the warm-up, which is no sign, and
        a search that has settled leaves the networks that it found to be trained.
        """
        first = self.config.client.alpha_warmup // self.config.client.epochs
        if self.search_rounds < self.rounds:
            first = max(first, self.search_rounds)
        return super().converged(history[first:])

    def _search(self, index: int, clients: Sequence[int]) -> Part:
        where, relaxation = f"round {index}", self.relaxation(index)
        epochs = self.config.client.epochs
        trajectory = self.learner.trajectory()
        cohort, losses = self.search(
            clients,
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
        metrics = training_metrics(losses, val) | self._search_metrics(index, cohort)
        kept = self.local.kept(cohort)
        if self._settles:
            assert cohort.alpha is not None
            kept[self._found.name] = (cohort.alpha - self._sent_alpha()).flatten(1)
        return Part(cohort.clients, replies_of(cohort, update._asdict(), metrics), kept)

    def _sent_alpha(self) -> Tensor:
        """α that every client searches from; 0 where each keeps its own."""
        alpha = self.server.alpha
        return torch.zeros_like(alpha) if "alpha" in self.config.server.local else alpha

    def _search_metrics(self, index: int, cohort: Cohort) -> dict[str, Tensor]:
        """Of each client's α behind its search, (G)."""
        assert cohort.alpha is not None
        relaxation, alpha = self.relaxation(index), cohort.alpha
        costs = self.federation.cohort_costs(cohort.clients)
        genotypes = [self.genotype(a, c) for a, c in zip(alpha.cpu(), cohort.clients, strict=True)]
        metrics = {
            "expected_cost": expected_cost(costs, *relaxation.mixture(alpha).chances),
            "entropy": entropy(relaxation.log_chances(alpha)),
            "skips": torch.tensor([skips(genotype) for genotype in genotypes]),
        }
        sharpness = self._hessian(cohort, index)
        return metrics if sharpness is None else metrics | {"hessian_eigenvalue": sharpness}

    def _search_figures(self, index: int, replies: Sequence[Reply]) -> dict[str, Any]:
        """What only rounds with a search have."""
        relaxation, federation = self.relaxation(index), self.federation
        cost = metric(replies, "expected_cost")
        figures: dict[str, Any] = {
            "alpha_entropy": float(entropy(relaxation.log_chances(self.server.alpha[None]))),
            "expected_cost": None if federation.unit is None else float(cost.mean()),
            "budget_use": float((cost / federation.budgets[[r.client for r in replies]]).mean()),
            "client_entropy": float(metric(replies, "entropy").mean()),
            "client_skips": mean(metric(replies, "skips").tolist()),
        }
        if "hessian_eigenvalue" in replies[0].metrics:
            figures["hessian_eigenvalue"] = mean(metric(replies, "hessian_eigenvalue").tolist())
        return figures

    def _train_subnetworks(self, index: int, clients: Sequence[int]) -> Part:
        """Each client trains its architecture."""
        cohort = self._start(clients, final=False)
        replies = train_subnetworks(
            self.federation,
            self.plan,
            cohort,
            {client: self.architecture(client) for client in clients},
            self.local,
            self.round_lr(index),
            f"round {index}",
        )
        return Part(cohort.clients, replies, self.local.kept(cohort))

    def _network_figures(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """What only rounds behind the search have."""
        federation, networks = self.federation, architectures(replies)
        costs = [genotype_cost(federation.costs_of(c), g) for c, g in networks.items()]
        budgets = federation.budgets[list(networks)].tolist()
        return {
            "expected_cost": None if federation.unit is None else mean(costs),
            "budget_use": mean([c / b for c, b in zip(costs, budgets, strict=True)]),
            "client_skips": mean([skips(genotype) for genotype in networks.values()]),
        }

    def _messages(self, sampled: Sequence[int], replies: Sequence[Reply]) -> dict[int, int]:
        """Bytes of each client's network."""
        stays = self.local.masks(self.server.theta, self.server.running)
        networks = architectures(replies)
        return {
            c: 4 * shared_numbers(self.plan, networks.get(c) or self.architecture(c), *stays)
            for c in sampled
        }

    @property
    def _message(self) -> int:
        """Bytes that the server sends to a client, and a client to the server."""
        return 4 * (sum(tensor.numel() for tensor in self._shared()) - self.local.numbers)

    def _measures_sharpness(self, index: int) -> bool:
        every = self.config.server.hessian_every
        return every > 0 and (index + 1) % every == 0

    def _hessian(self, cohort: Cohort, index: int) -> Tensor | None:
        """∇²_α's largest eigenvalues (G) at the end of a search; None in rounds without them."""
        if not self._measures_sharpness(index):
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


def architectures(replies: Sequence[Reply]) -> dict[int, Architecture]:
    """By client, of those that tell theirs."""
    return {r.client: r.architecture for r in replies if r.architecture is not None}


def skips(genotype: Architecture) -> int:
    return genotype.operations().count("skip_connect")


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
