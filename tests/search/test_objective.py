"""Terms of the loss on alpha against plain formulas and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metadnas_ext.config import ClientConfig
from metadnas_ext.search.objective import (
    BetaDecay,
    CostPenalty,
    KLToServer,
    Objective,
    Term,
    ZeroOne,
    entropy,
)
from metadnas_ext.search.relaxations import SOFTMAX, Relaxation, Sigmoid, Softmax
from metadnas_ext.space import PRIMITIVES, CostTable, NetworkShape, cost_table

CLIENTS, EDGES, CANDIDATES = 3, 5, len(PRIMITIVES)  # two nodes have five edges
ALL = slice(0, CLIENTS)


def random_alpha(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(CLIENTS, 2, EDGES, CANDIDATES, generator=generator, dtype=torch.float64)


def table() -> CostTable:
    return cost_table(NetworkShape(4, 2, nodes=2, image_size=8))


def of(term: Term, alpha: Tensor) -> Tensor:
    """The term of all clients, with softmax(alpha)."""
    return term(alpha, SOFTMAX.mixture(alpha).chances, ALL)


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    top = max(row)
    exps = [math.exp((value - top) / temperature) for value in row]
    return [e / sum(exps) for e in exps]


def rows_of(alpha: Tensor, client: int) -> list[list[float]]:
    """All rows of logits of one client's two cells."""
    return alpha[client].flatten(0, 1).tolist()


def finite_difference(function, alpha: Tensor) -> Tensor:
    """Central differences of sum(function(alpha)) for every entry."""
    grad, step = torch.zeros_like(alpha), 1e-6
    for index in range(alpha.numel()):
        shifted = []
        for sign in (1, -1):
            moved = alpha.clone()
            moved.view(-1)[index] += sign * step
            shifted.append(float(function(moved).sum()))
        grad.view(-1)[index] = (shifted[0] - shifted[1]) / (2 * step)
    return grad


def test_entropy() -> None:
    alpha = random_alpha()
    for client, value in enumerate(entropy(alpha.log_softmax(-1)).tolist()):
        each = [-sum(p * math.log(p) for p in softmax(row)) for row in rows_of(alpha, client)]
        assert value == pytest.approx(sum(each) / len(each))


def test_entropy_of_uniform_and_of_certain() -> None:
    uniform = torch.full((1, 2, EDGES, CANDIDATES), 7.0, dtype=torch.float64)
    assert float(entropy(uniform.log_softmax(-1))) == pytest.approx(math.log(CANDIDATES), abs=1e-14)
    certain = torch.zeros(1, 2, EDGES, CANDIDATES)
    certain[..., 3] = 1e4
    assert float(entropy(certain.log_softmax(-1))) == 0


def test_kl_to_server() -> None:
    alpha, server = random_alpha(), random_alpha(1)[0]
    reference = [softmax(row) for row in server.flatten(0, 1).tolist()]
    for client, value in enumerate(of(KLToServer(2.0, server, SOFTMAX), alpha).tolist()):
        each = [
            sum(p * math.log(p / q) for p, q in zip(softmax(row), other, strict=True))
            for row, other in zip(rows_of(alpha, client), reference, strict=True)
        ]
        assert value == pytest.approx(2 * sum(each) / len(each))
        assert value > 0.1


def test_kl_vanishes_where_the_weights_agree() -> None:
    """Also where the logits differ by a constant, which softmax ignores; so does its gradient."""
    server = random_alpha()[0]
    alpha = (torch.stack([server, server + 3.0, server])).requires_grad_()
    kl = of(KLToServer(1.0, server, SOFTMAX), alpha)
    (grad,) = torch.autograd.grad(kl.sum(), alpha)
    torch.testing.assert_close(kl.detach(), torch.zeros_like(kl), rtol=0, atol=1e-14)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-14)


def test_beta_decay() -> None:
    alpha = random_alpha()
    for client, value in enumerate(of(BetaDecay(0.5), alpha).tolist()):
        each = [math.log(sum(map(math.exp, row))) for row in rows_of(alpha, client)]
        assert value == pytest.approx(0.5 * sum(each) / len(each))


def test_zero_one() -> None:
    """Least, -weight / 4, where every sigmoid is 0 or 1; 0 where all are 1/2."""
    alpha = random_alpha()
    for client, value in enumerate(of(ZeroOne(3.0), alpha).tolist()):
        flat = [value for row in rows_of(alpha, client) for value in row]
        squares = [(1 / (1 + math.exp(-value)) - 0.5) ** 2 for value in flat]
        assert value == pytest.approx(-3 * sum(squares) / len(squares))
    signs = alpha.sign() * 100
    assert of(ZeroOne(3.0), signs).tolist() == pytest.approx([-0.75] * CLIENTS)
    assert of(ZeroOne(3.0), torch.zeros_like(alpha)).tolist() == [0.0] * CLIENTS


def expected_by_hand(alpha: Tensor, costs: CostTable) -> float:
    """Of one client's softmax(alpha), (2, E, O)."""
    expected = costs.fixed
    for cell, prices in enumerate(costs.cells):
        for edge in range(EDGES):
            node = 0 if edge < 2 else 1
            p = softmax(alpha[cell, edge].tolist())
            price = sum(a * b for a, b in zip(p, prices[edge].tolist(), strict=True))
            expected += price * 2 / (2 + node)
    return expected


@pytest.mark.parametrize(
    ("kind", "phi"),
    [
        ("linear", lambda e: e),
        ("hinge", lambda e: max(e, 0)),
        ("squared_hinge", lambda e: max(e, 0) ** 2),
        ("absolute", abs),
        ("dual", lambda e: e),
    ],
)
def test_cost_penalty(kind: str, phi: Callable[[float], float]) -> None:
    """Budgets above and below the expected cost; also of some of the clients."""
    alpha, costs = random_alpha(), table()
    budgets = torch.tensor([1e4, 5e4, 1e6], dtype=torch.float64)
    term = CostPenalty(costs, budgets, kind, 2.0)
    excess = [expected_by_hand(alpha[g], costs) / float(budgets[g]) - 1 for g in range(CLIENTS)]
    assert min(excess) < 0 < max(excess)
    assert of(term, alpha).tolist() == pytest.approx([2 * phi(e) for e in excess])
    chances = SOFTMAX.mixture(alpha[1:]).chances
    some = term(alpha[1:], chances, slice(1, 3))
    assert some.tolist() == pytest.approx([2 * phi(e) for e in excess[1:]])
    assert term(alpha.float(), SOFTMAX.mixture(alpha).chances, ALL).dtype == torch.float32


def test_dual_ascent() -> None:
    """Only of the clients that took a step, never below 0, and no gradient through it."""
    alpha, costs = random_alpha(), table()
    budgets = torch.tensor([1e4, 2e4, 1e9], dtype=torch.float64)
    term = CostPenalty(costs, budgets, "dual", 0.1, rate=0.2)
    excess = [expected_by_hand(alpha[g], costs) / float(budgets[g]) - 1 for g in range(CLIENTS)]
    leaf = alpha.clone().requires_grad_()
    before = of(term, leaf)
    term.advance(SOFTMAX.mixture(leaf[1:]).chances, slice(1, 3))
    raised = [0.1, 0.1 + 0.2 * excess[1], max(0.0, 0.1 + 0.2 * excess[2])]
    assert raised[2] == 0
    assert term.multiplier.tolist() == pytest.approx(raised)
    assert not term.multiplier.requires_grad
    (grad,) = torch.autograd.grad(before.sum(), leaf)  # with the multipliers as they were
    fixed = CostPenalty(costs, budgets, "linear", 0.1)
    torch.testing.assert_close(grad, finite_difference(lambda a: of(fixed, a), alpha))
    for kind in ("linear", "hinge"):
        other = CostPenalty(costs, budgets, kind, 0.1, rate=0.2)
        other.advance(SOFTMAX.mixture(alpha).chances, ALL)
        assert other.multiplier.tolist() == [0.1] * CLIENTS


def test_terms_are_switched_off_by_a_weight_of_0() -> None:
    """Dual ascent also starts from 0; the zero-one loss belongs to sigmoids."""
    off = {"penalty": 0.0, "kl": 0.0, "beta_decay": 0.0}
    server, costs, budgets = random_alpha()[0], table(), torch.ones(CLIENTS, dtype=torch.float64)

    def names(relaxation: Relaxation = SOFTMAX, server: Tensor | None = server, **changes: Any):
        config = ClientConfig(**(off | changes))
        made = Objective.of(config, relaxation, costs, budgets, server)
        return [type(term).__name__ for term in made.terms]

    assert names() == []
    assert names(penalty=0.1) == ["CostPenalty"]
    assert names(penalty_kind="dual") == ["CostPenalty"]
    assert names(penalty_kind="dual", dual_rate=0.0) == []
    assert names(kl=0.1) == ["KLToServer"]
    assert names(server=None, kl=0.1) == []
    assert names(beta_decay=0.1) == ["BetaDecay"]
    assert names(relaxation=Sigmoid()) == ["ZeroOne"]
    assert names(relaxation=Sigmoid(), zero_one=0.0) == []
    nothing = Objective([])(random_alpha(), SOFTMAX.mixture(random_alpha()).chances, ALL)
    assert nothing.tolist() == [0.0] * CLIENTS


def test_gradients_match_finite_differences() -> None:
    """Of every term with respect to every entry of alpha."""
    alpha, server, costs = random_alpha(), random_alpha(1)[0], table()
    budgets = torch.tensor([1e4, 3e4, 1e5], dtype=torch.float64)
    progress, cooled = torch.tensor([0.3, 0.0, 1.0]), Softmax(2.0, 0.5)

    def penalty(kind: str) -> CostPenalty:
        return CostPenalty(costs, budgets, kind, 0.7)

    for value in (
        lambda a: entropy(a.log_softmax(-1)),
        lambda a: of(BetaDecay(0.3), a),
        lambda a: of(ZeroOne(0.3), a),
        lambda a: of(KLToServer(0.3, server, SOFTMAX), a),
        lambda a: of(KLToServer(0.3, server, Sigmoid()), a),
        lambda a: of(penalty("linear"), a),
        lambda a: penalty("linear")(a, cooled.sample(a, progress, list).chances, ALL),
        lambda a: penalty("linear")(a, Sigmoid().mixture(a).chances, ALL),
        lambda a: of(penalty("hinge"), a),
        lambda a: of(penalty("squared_hinge"), a),
    ):
        leaf = alpha.clone().requires_grad_()
        (grad,) = torch.autograd.grad(value(leaf).sum(), leaf)
        torch.testing.assert_close(grad, finite_difference(value, alpha), rtol=1e-6, atol=1e-8)


def test_terms_of_one_client_do_not_reach_another() -> None:
    alpha, server = random_alpha().requires_grad_(), random_alpha(1)[0]
    budgets = torch.tensor([1e4, 3e4, 1e5], dtype=torch.float64)
    for term in (
        BetaDecay(1.0),
        ZeroOne(1.0),
        KLToServer(1.0, server, SOFTMAX),
        CostPenalty(table(), budgets, "linear", 1.0),
    ):
        (grad,) = torch.autograd.grad(of(term, alpha)[1], alpha)
        assert grad[1].any()
        assert not grad[[0, 2]].any()
