"""What stays on the clients, against bookkeeping by parameter names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metadnas_ext.federated.federation import Federation
from metadnas_ext.meta import FOMAML, Adapted, MetaGradient, ServerState
from metadnas_ext.methods import FedAvg, FedPer, MetaDNAS
from metadnas_ext.methods.derived import train_locally
from metadnas_ext.search.relaxations import SOFTMAX
from metadnas_ext.search.training import Evaluation, cohort_of

from ..federated._tiny import assert_close, assert_identical, tiny_federation

ALL_SEEN = {"server__clients_per_round": 3}
HEAD = ("classifier.weight", "classifier.bias")
STEM_NORM = ("stem.1.weight", "stem.1.bias")
NAMES = {"head": HEAD, "bn": STEM_NORM, "head,bn": HEAD + STEM_NORM, "alpha": ()}
"""Local parameters of w; norms inside cells have none."""

Named = dict[str, Tensor]


def keeping(local: str, federation: Federation) -> FedAvg:
    """FedAvg whose clients keep these parts."""

    class Keeping(FedAvg):
        local_parts = tuple(part for part in local.split(",") if part)

    return Keeping(federation)


def named(method: FedAvg, theta: Tensor, running: Tensor) -> Named:
    """Copies of parameters and running statistics by name."""
    views = method.plan.parameters.views(theta) | method.plan.running.views(running)
    return {name: view.clone() for name, view in views.items()}


def is_local(name: str, local: str) -> bool:
    return name in NAMES[local] or ("bn" in local and "running_" in name)


@pytest.mark.parametrize("local", ["head", "bn", "head,bn"])
def test_fedavg_with_local_parts(local: str) -> None:
    """Two rounds: shared parts are averaged, the others go on where the client left them."""
    federation = tiny_federation(**ALL_SEEN, client__optimizer="sgd")
    method, plan = keeping(local, federation), FedAvg(federation).plan
    shared = named(method, method.theta, method.running)
    own: dict[int, Named] = {}
    for index in range(2):
        finished: dict[int, Named] = {}
        for client in federation.seen:
            start = shared | {n: t for n, t in own.get(client, {}).items() if is_local(n, local)}
            cohort = cohort_of(
                federation.of([client]), plan.parameters.flatten(start), plan.running.flatten(start)
            )
            train_locally(federation, plan, cohort, 1, None, f"round {index}")
            finished[client] = named(method, cohort.theta[0], cohort.running[0])
        own = finished
        sizes = {c: len(federation.splits[c].train) for c in finished}
        shared = {
            name: sum(sizes[c] / sum(sizes.values()) * finished[c][name] for c in finished)
            for name in shared
        }  # the local ones too: the mean that newcomers get
        method.round(index)
    assert_close(method.theta, plan.parameters.flatten(shared), 1e-6)
    assert_close(method.running, plan.running.flatten(shared), 1e-6)
    for client in range(4):
        cohort = method._start([client], final=False)
        expected = shared | {n: t for n, t in own.get(client, {}).items() if is_local(n, local)}
        assert_close(cohort.theta[0], plan.parameters.flatten(expected), 1e-6, str(client))
        assert_close(cohort.running[0], plan.running.flatten(expected), 1e-6, str(client))
    (unseen,) = federation.unseen
    assert_identical(method._start([unseen], final=False).theta[0], method.theta)
    first = method._start([federation.seen[0]], final=False)
    assert not torch.equal(first.theta[0], method.theta)


@pytest.mark.parametrize("local", ["", "head", "bn", "head,bn", "alpha", "head,bn,alpha"])
def test_what_stays_is_not_sent(local: str) -> None:
    federation = tiny_federation(server__local=local)
    for method in (keeping(local, federation), MetaDNAS(federation)):
        slots = [*method.plan.parameters.slots.values(), *method.plan.running.slots.values()]
        kept = NAMES.get(local.removesuffix(",alpha"), ())
        sent = sum(
            slot.end - slot.offset
            for slot in slots
            if not (slot.name in kept or ("bn" in local and "running_" in slot.name))
        )
        if isinstance(method, MetaDNAS) and "alpha" not in local:
            sent += method.server.alpha.numel()
        figures = method.round(0)
        assert figures.bytes_up == figures.bytes_down == 4 * sent * len(figures.clients)
        extra = {name for name in method.state() if name.startswith("local_")}
        needed = local not in ("", "alpha") or (local == "alpha" and isinstance(method, MetaDNAS))
        assert extra == ({"local_rows", "local_known"} if needed else set())


@pytest.mark.parametrize("name", ["fedavg", "meta_dnas"])
def test_a_client_that_took_no_part_starts_as_everybody_did_and_ends_as_newcomers_do(
    name: str,
) -> None:
    """It counts for no mean; behind the last round the mean is all there is to start it from."""
    federation = tiny_federation(server__clients_per_round=1, server__local="head,bn")
    initial = FedAvg(federation) if name == "fedavg" else MetaDNAS(federation)
    method = keeping("head,bn", federation) if name == "fedavg" else MetaDNAS(federation)
    (took_part,) = method.round(0).clients
    others = [client for client in federation.seen if client != took_part]
    (unseen,) = federation.unseen

    def local_parts(of: FedAvg | MetaDNAS, client: int, final: bool) -> Named:
        cohort = of._start([client], final=final)
        views = of.plan.parameters.views(cohort.theta[0])
        views |= of.plan.running.views(cohort.running[0])
        return {n: t for n, t in views.items() if n in HEAD + STEM_NORM or "running_" in n}

    for final in (False, True):
        own = local_parts(method, took_part, final)
        for client in others:
            expected = own if final else local_parts(initial, client, final)
            for part, tensor in local_parts(method, client, final).items():
                assert_identical(tensor, expected[part], f"{client} {part} {final}")
        for part, tensor in local_parts(method, unseen, final).items():
            assert_identical(tensor, own[part], part)  # the mean of the one that took part


def test_who_took_no_part_is_personalised_from_the_mean() -> None:
    """Without training of its own its network is the unseen client's."""
    changes = {"personalise__finetune_epochs": 0, "personalise__adapt_epochs": 0}
    federation = tiny_federation(server__clients_per_round=1, **changes)
    method = keeping("head,bn", federation)
    (took_part,) = method.round(0).clients
    networks = {result.client: result.weights for result in method.personalise(range(4))}
    (unseen,) = federation.unseen
    for client in federation.seen:
        if client != took_part:
            for part, tensor in networks[unseen].items():
                assert_identical(networks[client][part], tensor, part)


def test_local_alpha_goes_on_where_the_client_left_it() -> None:
    """Two rounds of Meta-DNAS, each client's second search redone alone from its own α."""
    federation = tiny_federation(**ALL_SEEN, server__local="alpha", client__alpha_lr=0.3)
    method = MetaDNAS(federation)
    method.round(0)
    after = {c: method._start([c], final=False) for c in federation.seen}
    theta, running = method.server.theta.clone(), method.server.running.clone()
    method.round(1)
    alphas, sizes = [], []
    for client, start in after.items():
        assert start.alpha is not None
        assert_identical(start.theta[0], theta)
        alone = MetaDNAS(tiny_federation(client__alpha_lr=0.3))
        alone.server = ServerState.start(theta, running, start.alpha[0].clone())
        cohort, _ = alone.search([client], 1, "round/1", "round 1", None, SOFTMAX)
        now = method._start([client], final=False).alpha
        assert now is not None
        assert cohort.alpha is not None
        assert_identical(now[0], cohort.alpha[0])
        alphas.append(now[0])
        sizes.append(len(federation.splits[client].train))
    share = torch.tensor(sizes) / sum(sizes)
    mean = (share[:, None, None, None] * torch.stack(alphas)).sum(0)
    assert_close(method.server.alpha, mean, 1e-6)
    (unseen,) = federation.unseen
    start = method._start([unseen], final=False)
    assert start.alpha is not None
    assert_identical(start.alpha[0], method.server.alpha)
    assert float((alphas[0] - alphas[1]).abs().max()) > 0.01


class Wild(FOMAML):
    """Moves clients' own parts, and the meta-gradient of an own α, out of all proportion."""

    def __init__(self, method: MetaDNAS, local: str) -> None:
        super().__init__("alpha")
        self._views, self._local = method.plan.parameters.views, local

    def __call__(self, adapted: Adapted) -> tuple[MetaGradient, Evaluation]:
        grad, val = super().__call__(adapted)
        assert grad.alpha is not None
        cohort = adapted.cohort
        for row, client in enumerate(cohort.clients):
            for name in NAMES[self._local]:
                self._views(cohort.theta)[name][row] += 1000.0 * (client + 1)
            if self._local == "alpha":
                grad.alpha[row] += 1000.0 * torch.randn(grad.alpha[row].shape)
        return grad, val


@pytest.mark.parametrize("local", ["head", "head,bn", "alpha"])
def test_clients_are_compared_by_what_they_send(local: str) -> None:
    """Krum chooses as before, whatever the parts are like that stay."""
    federation = tiny_federation(**ALL_SEEN, server__local=local, server__aggregator="krum")
    method, wild = MetaDNAS(federation), MetaDNAS(federation)
    wild.learner = Wild(wild, local)
    for one in (method, wild):
        one.round(0)
    theirs = named(wild, wild.server.theta, wild.server.running)
    for name, tensor in named(method, method.server.theta, method.server.running).items():
        assert torch.equal(tensor, theirs[name]) == (name not in NAMES[local]), name
    assert_identical(method.server.alpha, wild.server.alpha)


@pytest.mark.parametrize("local", ["head", "bn"])
def test_unseen_clients_do_not_see_others_parts(local: str) -> None:
    """Personalising a seen client starts from its own part, not from the mean."""
    changes: dict[str, Any] = {**ALL_SEEN, "personalise__finetune_epochs": 0}
    federation = tiny_federation(**changes, personalise__adapt_epochs=0)
    method, mean = keeping(local, federation), keeping(local, federation)
    method.round(0)
    mean.theta, mean.running = method.theta, method.running
    starts = {c: [one._start([c], final=True) for one in (method, mean)] for c in range(4)}
    for client, (own, without) in starts.items():
        same = torch.equal(own.theta, without.theta) and torch.equal(own.running, without.running)
        assert same == (client in federation.unseen)


def test_fedper_keeps_head_and_norms() -> None:
    federation = tiny_federation(server__local="alpha")  # which is Meta-DNAS's
    method, same = FedPer(federation), keeping("head,bn", federation)
    for one in (method, same):
        one.round(0)
    assert method.state().keys() >= {"local_rows", "local_known"}
    for key, tensor in same.state().items():
        assert_identical(method.state()[key], tensor, key)
