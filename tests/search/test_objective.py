"""Terms of the loss on alpha against plain formulas and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from metadnas_ext.search import objective
from metadnas_ext.space import PRIMITIVES, CostTable, NetworkShape, cost_table, expected_cost

CLIENTS, EDGES, CANDIDATES = 3, 5, len(PRIMITIVES)  # two nodes have five edges


def random_alpha(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(CLIENTS, 2, EDGES, CANDIDATES, generator=generator, dtype=torch.float64)


def table() -> CostTable:
    return cost_table(NetworkShape(4, 2, nodes=2, image_size=8))


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


def test_mixing_weights_are_softmax_of_each_edge() -> None:
    alpha = random_alpha()
    temperature = torch.tensor([1.0, 0.5, 3.0])
    plain, cooled = objective.mixing_weights(alpha), objective.mixing_weights(alpha, temperature)
    for client in range(CLIENTS):
        for cell in range(2):
            for edge in range(EDGES):
                row = alpha[client, cell, edge].tolist()
                own = softmax(row, float(temperature[client]))
                assert plain[cell][client, edge].tolist() == pytest.approx(softmax(row))
                assert cooled[cell][client, edge].tolist() == pytest.approx(own)


def test_entropy() -> None:
    alpha = random_alpha()
    for client, value in enumerate(objective.entropy(alpha).tolist()):
        each = [-sum(p * math.log(p) for p in softmax(row)) for row in rows_of(alpha, client)]
        assert value == pytest.approx(sum(each) / len(each))


def test_entropy_of_uniform_and_of_certain() -> None:
    uniform = torch.full((1, 2, EDGES, CANDIDATES), 7.0, dtype=torch.float64)
    assert float(objective.entropy(uniform)) == pytest.approx(math.log(CANDIDATES), abs=1e-14)
    certain = torch.zeros(1, 2, EDGES, CANDIDATES)
    certain[..., 3] = 1e4
    assert float(objective.entropy(certain)) == 0


def test_kl_to_server() -> None:
    alpha, server = random_alpha(), random_alpha(1)[0]
    reference = [softmax(row) for row in server.flatten(0, 1).tolist()]
    for client, value in enumerate(objective.kl_to_server(alpha, server).tolist()):
        each = [
            sum(p * math.log(p / q) for p, q in zip(softmax(row), other, strict=True))
            for row, other in zip(rows_of(alpha, client), reference, strict=True)
        ]
        assert value == pytest.approx(sum(each) / len(each))
        assert value > 0.1


def test_kl_vanishes_where_the_weights_agree() -> None:
    """Also where the logits differ by a constant, which softmax ignores; so does its gradient."""
    server = random_alpha()[0]
    alpha = (torch.stack([server, server + 3.0, server])).requires_grad_()
    kl = objective.kl_to_server(alpha, server)
    (grad,) = torch.autograd.grad(kl.sum(), alpha)
    torch.testing.assert_close(kl.detach(), torch.zeros_like(kl), rtol=0, atol=1e-14)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-14)


def test_beta_decay() -> None:
    alpha = random_alpha()
    for client, value in enumerate(objective.beta_decay(alpha).tolist()):
        each = [math.log(sum(map(math.exp, row))) for row in rows_of(alpha, client)]
        assert value == pytest.approx(sum(each) / len(each))


def test_cost_ratio() -> None:
    alpha, costs = random_alpha(), table()
    budgets = torch.tensor([1e4, 5e4, 1e6], dtype=torch.float64)
    cost, excess = objective.cost_ratio(objective.mixing_weights(alpha), costs, budgets)
    for client in range(CLIENTS):
        expected = costs.fixed
        for cell, prices in enumerate(costs.cells):
            for edge in range(EDGES):
                node = 0 if edge < 2 else 1
                p = softmax(alpha[client, cell, edge].tolist())
                price = sum(a * b for a, b in zip(p, prices[edge].tolist(), strict=True))
                expected += price * 2 / (2 + node)
        assert float(cost[client]) == pytest.approx(expected)
        assert float(excess[client]) == pytest.approx(expected / float(budgets[client]) - 1)
    assert torch.equal(cost, expected_cost(costs, *objective.mixing_weights(alpha)))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("linear", [-1.0, 0.0, 1.5]),
        ("hinge", [0.0, 0.0, 1.5]),
        ("squared_hinge", [0.0, 0.0, 1.125]),
        ("dual", [-1.0, 0.0, 1.5]),
    ],
)
def test_penalty_kinds(kind: str, values: list[float]) -> None:
    """phi at -0.5, 0 and 0.75 times a strength of 2."""
    excess = torch.tensor([-0.5, 0.0, 0.75], dtype=torch.float64)
    assert objective.penalty(excess, kind, 2.0).tolist() == values
    strengths = torch.tensor([2.0, 2.0, 4.0], dtype=torch.float64)
    assert objective.penalty(excess, kind, strengths).tolist() == [*values[:2], 2 * values[2]]


def test_dual_ascent() -> None:
    multiplier = torch.tensor([0.1, 0.1, 0.0], dtype=torch.float64)
    excess = torch.tensor([0.5, -3.0, 0.25], dtype=torch.float64, requires_grad=True)
    raised = objective.dual_ascent(multiplier, excess, 0.2)
    assert raised.tolist() == pytest.approx([0.2, 0.0, 0.05])
    assert not raised.requires_grad
    assert multiplier.tolist() == [0.1, 0.1, 0.0]


def test_gradients_match_finite_differences() -> None:
    """Of every term with respect to every entry of alpha."""
    alpha, server, costs = random_alpha(), random_alpha(1)[0], table()
    budgets = torch.tensor([1e4, 3e4, 1e5], dtype=torch.float64)
    temperature = torch.tensor([0.3, 1.0, 2.0])

    def penalty(kind: str, cooled: bool = False):
        def value(a: Tensor) -> Tensor:
            weights = objective.mixing_weights(a, temperature if cooled else None)
            return objective.penalty(objective.cost_ratio(weights, costs, budgets)[1], kind, 0.7)

        return value

    for term in (
        objective.entropy,
        objective.beta_decay,
        lambda a: objective.kl_to_server(a, server),
        penalty("linear"),
        penalty("linear", cooled=True),
        penalty("hinge"),
        penalty("squared_hinge"),
    ):
        leaf = alpha.clone().requires_grad_()
        (grad,) = torch.autograd.grad(term(leaf).sum(), leaf)
        torch.testing.assert_close(grad, finite_difference(term, alpha), rtol=1e-6, atol=1e-8)


def test_terms_of_one_client_do_not_reach_another() -> None:
    alpha = random_alpha().requires_grad_()
    server = random_alpha(1)[0]
    for term in (objective.entropy, objective.beta_decay):
        (grad,) = torch.autograd.grad(term(alpha)[1], alpha)
        assert not grad[[0, 2]].any()
    (grad,) = torch.autograd.grad(objective.kl_to_server(alpha, server)[1], alpha)
    assert not grad[[0, 2]].any()
