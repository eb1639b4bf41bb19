"""Meta-DNAS: the gate, rounds put together from their parts; DARTS on each client alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from metadnas_ext.meta import Adapted, outer_gradient
from metadnas_ext.methods import LocalDARTS, MetaDNAS, searching
from metadnas_ext.methods.derived import Trained
from metadnas_ext.search import discretize
from metadnas_ext.search.relaxations import SOFTMAX, Softmax
from metadnas_ext.space import Genotype

from ..federated._tiny import assert_close, assert_identical, tiny_federation

CLIENTS = range(4)


def shared(method: MetaDNAS, client: int) -> Genotype:
    """The server's architecture within the client's budget."""
    federation, alpha = method.federation, method.server.alpha
    return discretize((alpha[0], alpha[1]), federation.costs, float(federation.budgets[client]))


def gated(monkeypatch: pytest.MonkeyPatch, vals: dict[bool, list[float]]) -> list[str]:
    """What each client keeps when own (True) and meta networks (False) reach these accuracies."""
    method = MetaDNAS(tiny_federation(client__alpha_lr=0.5))  # alpha moves: networks differ
    calls = []

    def finetune(federation, genotypes, start, epochs, key, **_):
        calls.append(genotypes)
        own = len(calls) == 1
        return {c: Trained(g, vals[own][c], 0.5) for c, g in genotypes.items()}

    monkeypatch.setattr(searching, "finetune", finetune)
    results = method.personalise(CLIENTS)
    own, rivals = calls
    assert set(own) == set(rivals) == set(CLIENTS)
    for result in results:
        assert rivals[result.client] == shared(method, result.client) != own[result.client]
        kept = rivals if result.kept == "meta" else own
        assert result.genotype == kept[result.client].to_json()
        assert result.val_accuracy == vals[result.kept == "personal"][result.client]
    return [result.kept for result in results]


def test_gate_keeps_what_is_better_on_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    vals = {True: [0.5, 0.5, 0.5, 0.9], False: [0.6, 0.5, 0.4, 0.91]}
    assert gated(monkeypatch, vals) == ["meta", "personal", "personal", "meta"]


def test_adaptation_has_a_rate_of_its_own() -> None:
    """A search at rate 0 leaves w where it started; another rate is as good as `client.lr`."""
    method = MetaDNAS(tiny_federation())
    cohort, _ = method.search([0, 1], 1, "adapt", "here", None, SOFTMAX, lr=0.0)
    assert torch.equal(cohort.theta, method.server.theta.expand_as(cohort.theta))
    own = MetaDNAS(tiny_federation(personalise__adapt_lr=0.02)).personalise(CLIENTS)
    assert own == MetaDNAS(tiny_federation(client__lr=0.02)).personalise(CLIENTS)
    assert own != MetaDNAS(tiny_federation()).personalise(CLIENTS)


def test_gate_with_real_networks() -> None:
    """Both candidates trained for real: the result is the better of the two runs' halves."""
    changes = {"client__alpha_lr": 0.5, "personalise__finetune_epochs": 2}
    method = MetaDNAS(tiny_federation(**changes))
    ungated = MetaDNAS(tiny_federation(**changes, personalise__gate=False))
    kept = set()
    for with_gate, own in zip(
        method.personalise(CLIENTS), ungated.personalise(CLIENTS), strict=True
    ):
        assert own.kept == "personal"
        kept.add(with_gate.kept)
        if with_gate.kept == "personal":
            assert with_gate == own
        else:
            assert with_gate.val_accuracy > own.val_accuracy
            assert with_gate.genotype == shared(method, with_gate.client).to_json()
    assert kept == {"personal", "meta"}


def test_a_round_is_search_and_meta_gradient_of_each_client_then_one_server_step() -> None:
    federation = tiny_federation()
    method = MetaDNAS(federation)
    start = {name: t.clone() for name, t in method.state().items()}
    figures = method.round(0)

    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for client in figures.clients:
        fresh = MetaDNAS(federation)
        cohort, _ = fresh.search([client], 1, "round/0", "round 0", start["alpha"], SOFTMAX)
        adapted = Adapted(
            fresh.plan,
            cohort,
            start["theta"],
            start["alpha"],
            federation.config.client,
            federation.costs,
            federation.budgets[[client]],
            federation.store,
            "round 0",
        )
        grad, _ = outer_gradient(adapted, with_theta=False)
        assert grad.alpha is not None
        parts.append((cohort.theta[0], cohort.running[0], grad.alpha[0]))
    sizes = [len(federation.splits[c].train) for c in figures.clients]

    def mean(which: int) -> Tensor:
        total = sum(s * part[which].double() for s, part in zip(sizes, parts, strict=True))
        assert isinstance(total, Tensor)
        return (total / sum(sizes)).float()

    assert_close(method.server.theta, mean(0), 1e-6)
    assert_close(method.server.running, mean(1), 1e-6)
    alpha = start["alpha"].clone().requires_grad_()
    alpha.grad = mean(2)
    torch.optim.Adam([alpha], federation.config.server.alpha_lr).step()
    assert_close(method.server.alpha, alpha.detach(), 1e-7)
    assert float((method.server.alpha - start["alpha"]).abs().max()) > 5e-4


def test_figures_of_a_round() -> None:
    federation = tiny_federation()
    method = MetaDNAS(federation)
    figures = method.round(0)
    server = method.server
    floats = server.theta.numel() + server.running.numel() + server.alpha.numel()
    assert figures.bytes_up == figures.bytes_down == 2 * 4 * floats
    p = server.alpha.double().softmax(-1)
    entropy = float(-(p * p.log()).sum(-1).mean())
    assert figures.alpha_entropy == pytest.approx(entropy, rel=1e-5)
    assert 0 < entropy < math.log(len(federation.shape.candidates))
    genotype = discretize((server.alpha[0], server.alpha[1]), federation.costs)
    skips = [name for name, _ in (*genotype.normal, *genotype.reduce) if name == "skip_connect"]
    assert figures.skips == len(skips)
    assert genotype == method.shared_genotype()
    assert figures.expected_cost is not None
    assert figures.expected_cost > federation.costs.fixed


def test_the_personal_architecture_is_that_of_the_last_temperature() -> None:
    """Not of the raw logits: which edges a node keeps depends on how sharp their mixtures are."""
    federation = tiny_federation(personalise__temperature=0.02, client__alpha_lr=0.3)
    method = MetaDNAS(federation)
    how = (CLIENTS, 1, "adapt", "personalisation", method.server.alpha, Softmax(1.0, 0.02))
    cohort, _ = method.search(*how)
    assert cohort.alpha is not None
    adapted = method._adapt(*how)
    differing = 0
    for row, client in enumerate(cohort.clients):
        budget = float(federation.budgets[client])
        sharp, raw = (
            discretize((alpha[0], alpha[1]), federation.costs, budget)
            for alpha in (cohort.alpha[row] / 0.02, cohort.alpha[row])
        )
        assert adapted.genotypes[client] == sharp
        differing += sharp != raw
    assert differing


def test_adaptation_of_no_epochs_derives_from_the_server_alone() -> None:
    method = MetaDNAS(tiny_federation(personalise__adapt_epochs=0))
    method.round(0)
    for result in method.personalise(CLIENTS):
        assert result.kept == "personal"
        assert result.genotype == shared(method, result.client).to_json()


def test_darts_has_the_local_epochs_of_the_federated_methods() -> None:
    """2 rounds of 2 of 3 clients: 4/3 of a round a client, of 3 epochs each, and 2 to adapt."""
    method = LocalDARTS(tiny_federation(client__epochs=3, personalise__adapt_epochs=2))
    assert method.rounds == 0
    assert method.epochs == 4 + 2
    assert method.state() == {}
    assert method.shared_genotype() is None
    with pytest.raises(RuntimeError):
        method.round(0)
    with pytest.raises(ValueError, match="no state"):
        method.load_state({"theta": torch.zeros(1)})


def test_methods_start_from_the_same_weights() -> None:
    federation = tiny_federation()
    one, two = MetaDNAS(federation).server, LocalDARTS(federation).server
    for name, tensor in one.tensors().items():
        assert_identical(two.tensors()[name], tensor, name)
