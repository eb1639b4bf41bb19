"""First-order meta-gradients, FOMAML's and Reptile's, against independent computations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metadnas_ext.config import Config
from metadnas_ext.errors import DivergenceError
from metadnas_ext.meta import FOMAML, MetaGradient, Reptile, outer_gradient
from metadnas_ext.meta.base import LEARNED
from metadnas_ext.nn import Supernet
from metadnas_ext.search.cohort import Cohort
from metadnas_ext.search.training import Evaluation
from metadnas_ext.space import expected_cost

from ..federated._tiny import assert_close, assert_identical
from ..search._clients import (
    BUDGETS,
    COSTS,
    FINAL_TEMPERATURE,
    PARTS,
    SPLITS,
    adapted,
    client_config,
    fresh_cohort,
    images,
    random_rows,
    supernet_at,
)

KINDS = ["linear", "hinge", "squared_hinge", "absolute", "dual"]


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
    grad, figures = outer_gradient(adapted(cohort, config), with_theta=False)
    assert grad.theta is None
    assert grad.alpha is not None
    return grad.alpha, figures


def network(cohort: Cohort, row: int) -> Supernet:
    """A client's network as an ordinary module in eval mode."""
    assert cohort.alpha is not None
    state = (t[row : row + 1] for t in (cohort.theta, cohort.running, cohort.alpha))
    return supernet_at(*state).eval()


def plain_loss(
    cohort: Cohort, row: int, alpha: Tensor, config: Config, net: Supernet | None = None
) -> tuple[Tensor, Tensor]:
    """The client's loss at alpha (2, E, O) and its cross-entropy, the whole validation part as one
    batch."""
    client, settings = cohort.clients[row], config.client
    net = net or network(cohort, row)
    x, y = images(SPLITS[client].val)
    weights = (alpha / FINAL_TEMPERATURE).softmax(-1)
    entropy = F.cross_entropy(net._run(x, (weights[:1], weights[1:])), y)
    excess = expected_cost(COSTS, weights[0], weights[1]) / BUDGETS[client] - 1
    if settings.penalty_kind in ("hinge", "squared_hinge"):
        excess = F.relu(excess) ** (2 if settings.penalty_kind == "squared_hinge" else 1)
    if settings.penalty_kind == "absolute":
        excess = excess.abs()
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


@pytest.mark.parametrize("on", ["w", "both"])
def test_gradient_of_the_weights_is_autograd_on_a_module(on: str) -> None:
    config, cohort = client_config(), adapted_cohort(list(PARTS))
    assert cohort.alpha is not None
    grad, _ = FOMAML(on)(adapted(cohort, config))
    assert (grad.alpha is not None) == (on == "both")
    assert grad.theta is not None
    for row, client in enumerate(cohort.clients):
        net = network(cohort, row)
        loss, _ = plain_loss(cohort, row, cohort.alpha[row], config, net)
        names = list(net.plan.parameters.slots)
        found = torch.autograd.grad(loss, [net.get_parameter(name) for name in names])
        expected = net.plan.parameters.flatten(dict(zip(names, found, strict=True)))
        assert_close(grad.theta[row], expected, 1e-11, f"client {client}")
        if grad.alpha is not None:
            assert_close(grad.alpha[row], gradient_of(cohort, config)[0][row], 1e-13)


@pytest.mark.parametrize("on", list(LEARNED))
def test_reptile_is_the_way_back_to_the_start(on: str) -> None:
    """Of every parameter, those without a gradient included; figures as FOMAML's."""
    config, cohort = client_config(), adapted_cohort([0, 3])
    assert cohort.alpha is not None
    origin = adapted(cohort, config)
    grad, figures = Reptile(on)(origin)
    expected = MetaGradient(origin.theta - cohort.theta, origin.alpha - cohort.alpha)
    for name, mine, way in zip(MetaGradient._fields, grad, expected, strict=True):
        assert (mine is not None) == (name in LEARNED[on])
        if mine is not None and way is not None:
            assert_identical(mine, way)
    for mine, other in zip(figures, gradient_of(cohort, config)[1], strict=True):
        assert_close(mine, other, 1e-13)


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
