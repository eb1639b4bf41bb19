"""The meta-gradient and the server's step against independent computations."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metadnas_ext.config import Config
from metadnas_ext.errors import DivergenceError
from metadnas_ext.meta import ServerState, server_step
from metadnas_ext.nn import supernet_plan
from metadnas_ext.search.architect import meta_gradient
from metadnas_ext.search.cohort import Cohort
from metadnas_ext.search.training import Evaluation
from metadnas_ext.space import expected_cost

from ..federated._tiny import assert_close
from ..search._clients import (
    BUDGETS,
    COSTS,
    PARTS,
    SHAPE,
    SPLITS,
    STORE,
    budgets_of,
    client_config,
    fresh_cohort,
    images,
    random_rows,
    supernet_at,
)

KINDS = ["linear", "hinge", "squared_hinge", "dual"]


def adapted_cohort(clients: list[int]) -> Cohort:
    """Clients at random states of their own, as after local search."""
    cohort = fresh_cohort(clients)
    assert cohort.alpha is not None
    for row, client in enumerate(cohort.clients):
        cohort.theta[row] += 0.1 * random_rows(1, cohort.theta.shape[1], client)[0]
        cohort.running[row] += random_rows(1, cohort.running.shape[1], client)[0].abs()
        noise = random_rows(1, cohort.alpha[row].numel(), client)
        cohort.alpha[row] += noise.view_as(cohort.alpha[row])
    return cohort


def gradient_of(cohort: Cohort, config: Config) -> tuple[Tensor, Evaluation]:
    return meta_gradient(
        supernet_plan(SHAPE), cohort, config.client, COSTS, budgets_of(cohort), STORE, "round 1"
    )


def plain_loss(cohort: Cohort, row: int, alpha: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """The client's loss at alpha (2, E, O) and its cross-entropy, with a module in eval mode and
    the whole validation part as one batch."""
    client, settings = cohort.clients[row], config.client
    net = supernet_at(cohort.theta[row : row + 1], cohort.running[row : row + 1], alpha[None])
    net.eval()
    x, y = images(SPLITS[client].val)
    weights = alpha.softmax(-1)
    entropy = F.cross_entropy(net._run(x, (weights[:1], weights[1:])), y)
    excess = expected_cost(COSTS, weights[0], weights[1]) / BUDGETS[client] - 1
    if settings.penalty_kind in ("hinge", "squared_hinge"):
        excess = F.relu(excess) ** (2 if settings.penalty_kind == "squared_hinge" else 1)
    return entropy + settings.penalty * excess, entropy


@pytest.mark.parametrize("kind", KINDS)
def test_meta_gradient_is_autograd_on_the_whole_validation_part(kind: str) -> None:
    """Parts of 7, 3, 2 and 12 images in batches of 8: the last one of 4 weighs 4/12."""
    config = client_config(penalty_kind=kind)
    cohort = adapted_cohort(list(PARTS))
    assert cohort.alpha is not None
    grad, figures = gradient_of(cohort, config)
    for row, client in enumerate(cohort.clients):
        alpha = cohort.alpha[row].clone().requires_grad_()
        loss, entropy = plain_loss(cohort, row, alpha, config)
        (expected,) = torch.autograd.grad(loss, alpha)
        assert_close(grad[row], expected, 1e-11, f"client {client}")
        assert_close(figures.loss[row], entropy.detach(), 1e-12)
        assert int(figures.size[row]) == PARTS[client][1]
    assert figures.accuracy.unique().numel() > 1


def test_meta_gradient_matches_finite_differences() -> None:
    config = client_config()
    cohort = adapted_cohort([3])
    assert cohort.alpha is not None
    grad, _ = gradient_of(cohort, config)
    step, alpha = 1e-5, cohort.alpha[0]
    for index in ((0, 0, 0), (0, 2, 3), (0, 4, 4), (1, 1, 1), (1, 3, 2)):
        values = []
        for sign in (1, -1):
            moved = alpha.clone()
            moved[index] += sign * step
            values.append(float(plain_loss(cohort, 0, moved, config)[0].detach()))
        difference = (values[0] - values[1]) / (2 * step)
        assert float(grad[0][index]) == pytest.approx(difference, rel=1e-5, abs=1e-9)


def test_meta_gradient_leaves_the_cohort_as_it_is() -> None:
    cohort = adapted_cohort([0, 1])
    before = [t.clone() for t in (cohort.theta, cohort.running, cohort.alpha) if t is not None]
    gradient_of(cohort, client_config())
    for old, new in zip(before, (cohort.theta, cohort.running, cohort.alpha), strict=True):
        assert new is not None
        assert torch.equal(old, new)


def test_meta_gradient_stops_at_a_loss_that_is_not_finite() -> None:
    cohort = adapted_cohort([0, 3])
    cohort.theta[cohort.clients.index(0), -1] = float("inf")
    with pytest.raises(DivergenceError, match="round 1: the loss of client 0 is"):
        gradient_of(cohort, client_config())


@functools.cache
def round_of(index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A round's theta (3, 11), running (3, 6), alpha gradients (3, 2, 5, 4) and sizes."""
    theta, running, grad = (
        random_rows(3, width, 10 * index + k) for k, width in enumerate((11, 6, 40))
    )
    return theta, running, grad.view(3, 2, 5, 4), torch.tensor([10.0, 1.0, 30.0]).double() + index


def fresh_server() -> ServerState:
    rows = (random_rows(1, width, 99) for width in (11, 6, 40))
    theta, running, alpha = (row[0] for row in rows)
    return ServerState.start(theta, running, alpha.view(2, 5, 4))


def test_server_averages_weights_and_takes_torchs_adam_on_alpha() -> None:
    server = fresh_server()
    alpha = server.alpha.clone().requires_grad_()
    optimizer = torch.optim.Adam([alpha], lr=0.01)
    for index in range(5):
        theta, running, grad, sizes = round_of(index)
        server_step(server, theta, running, grad, sizes, 0.01)
        share = [float(size / sizes.sum()) for size in sizes]
        for actual, parts in ((server.theta, theta), (server.running, running)):
            mean = sum(s * part for s, part in zip(share, parts, strict=True))
            assert isinstance(mean, Tensor)
            assert_close(actual, mean, 1e-14)
        mean = sum(s * part for s, part in zip(share, grad, strict=True))
        assert isinstance(mean, Tensor)
        alpha.grad = mean
        optimizer.step()
        assert_close(server.alpha, alpha.detach(), 1e-12, f"round {index}")
    assert float(server.alpha_steps) == 5


def test_server_goes_on_from_saved_tensors() -> None:
    """A state rebuilt from its tensors after every round ends where an untouched one does."""
    whole, pieces = fresh_server(), fresh_server()
    for index in range(4):
        server_step(whole, *round_of(index), 0.01)
        server_step(pieces, *round_of(index), 0.01)
        pieces = ServerState(**{name: t.clone() for name, t in pieces.tensors().items()})
    for name, tensor in whole.tensors().items():
        assert torch.equal(pieces.tensors()[name], tensor), name


def test_a_client_alone_hands_its_weights_to_the_server() -> None:
    server = fresh_server()
    theta, running, grad, _ = (t[:1] for t in round_of(0))
    server_step(server, theta, running, grad, torch.tensor([7.0]).double(), 0.0)
    assert torch.equal(server.theta, theta[0])
    assert torch.equal(server.running, running[0])
    assert torch.equal(server.alpha, fresh_server().alpha)  # a rate of 0
