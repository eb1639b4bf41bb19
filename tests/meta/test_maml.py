"""Second-order MAML against exact autograd, brute force and its own first-order part."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metadnas_ext.config import Config
from metadnas_ext.errors import DivergenceError
from metadnas_ext.meta import FOMAML, MAML, MetaGradient, maml, outer_gradient
from metadnas_ext.search.cohort import Cohort
from metadnas_ext.search.trajectory import Trajectory
from metadnas_ext.space import expected_cost

from ..federated._tiny import assert_identical
from ..search._clients import (
    BUDGETS,
    COSTS,
    FINAL_TEMPERATURE,
    adapted,
    client_config,
    searched,
    start,
)
from ._exact import PLAN, Exact, exact

CLIENTS = [0, 1]
"""Of 3 and 2 steps, with ragged batches."""
INNER: dict[str, dict[str, Any]] = {
    "adam": {"clip": 0.0},
    "adam, clipped": {"clip": 0.5},
    "sgd": {"optimizer": "sgd", "lr": 0.05, "clip": 100.0},
    "sgd, clipped": {"optimizer": "sgd", "lr": 0.05, "clip": 0.5, "penalty_kind": "squared_hinge"},
    "dual ascent": {"penalty_kind": "dual", "dual_rate": 0.4, "kl": 0.5},
    "warm-up": {"alpha_warmup": 1, "clip": 0.0},
    "gumbel": {"relaxation": "gumbel", "optimizer": "sgd", "lr": 0.05, "clip": 0.0},
    "sigmoid": {"relaxation": "sigmoid", "zero_one": 1.0, "clip": 0.0, "kl": 0.5},
}
EPOCHS = {"warm-up": 2}
"""Of local search; else 1. Client 1 leaves the warm-up, and the search, before client 0."""


def learned(
    clients: list[int],
    config: Config,
    dtype: torch.dtype = torch.float64,
    epochs: int = 1,
    window: int = 0,
) -> tuple[Cohort, dict[int, tuple[Tensor, Tensor]]]:
    """The cohort behind its search, and each client's meta-gradients of w and α."""
    trajectory = Trajectory(window)
    cohort, _ = searched(clients, config, dtype, epochs, trajectory)
    grad, _ = MAML("both", window)(adapted(cohort, config, trajectory))
    return cohort, by_client(cohort, grad)


def by_client(cohort: Cohort, grad: MetaGradient) -> dict[int, tuple[Tensor, Tensor]]:
    assert grad.theta is not None
    assert grad.alpha is not None
    rows = zip(grad.theta, grad.alpha, strict=True)
    return dict(zip(cohort.clients, rows, strict=True))


@functools.cache
def truth(client: int, inner: str, window: int = 0) -> Exact:
    config, epochs = client_config(**INNER[inner]), EPOCHS.get(inner, 1)
    cohort, _ = searched([client], config, torch.float64, epochs)
    return exact(client, config.client, epochs, cohort.running[0], window)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("inner", list(INNER))
def test_equals_exact_autograd(inner: str) -> None:
    """Well-posed: within 1e-5 of these states no ReLU changes sides in a way that shows."""
    config = client_config(**INNER[inner])
    cohort, grads = learned(CLIENTS, config, epochs=EPOCHS.get(inner, 1))
    assert cohort.alpha is not None
    for row, client in enumerate(cohort.clients):
        expected = truth(client, inner)
        limit = INNER[inner].get("clip", 5.0)
        assert all((norm > limit) == ("clipped" in inner) or limit == 0 for norm in expected.norms)
        for mine, other in zip((cohort.theta, cohort.alpha), expected.end, strict=True):
            assert relative_error(mine[row], other) < 1e-11  # the same search
        for mine, other in zip(grads[client], (expected.theta, expected.alpha), strict=True):
            assert relative_error(mine, other) < 1e-5


@pytest.mark.parametrize("window", [1, 2, 5])
def test_of_the_last_steps(window: int) -> None:
    """Each client's own last ones; more than there are is all of them."""
    cohort, grads = learned(CLIENTS, client_config(**INNER["sgd, clipped"]), window=window)
    for client in cohort.clients:
        expected = truth(client, "sgd, clipped", window)
        for mine, other in zip(grads[client], (expected.theta, expected.alpha), strict=True):
            assert relative_error(mine, other) < 1e-5


@pytest.mark.parametrize("window", [1, 4, 5])
def test_of_the_last_steps_and_a_warm_up(window: int) -> None:
    """α's first step may be the first that is differentiated, lie behind it, or before it."""
    config = client_config(**INNER["warm-up"])
    cohort, grads = learned(CLIENTS, config, epochs=2, window=window)
    for client in cohort.clients:
        expected = truth(client, "warm-up", window)
        for mine, other in zip(grads[client], (expected.theta, expected.alpha), strict=True):
            assert relative_error(mine, other) < 1e-5


def test_of_clients_that_count_on_devices_of_their_own() -> None:
    """By each client's own table, in the search's penalty and in the outer loss."""
    config = client_config(**INNER["dual ascent"])
    own = replace(COSTS, cells=3 * COSTS.cells, fixed=COSTS.fixed / 2)
    trajectory = Trajectory()
    cohort, _ = searched(CLIENTS, config, epochs=1, trajectory=trajectory, costs=own)
    grads = by_client(cohort, MAML("both")(adapted(cohort, config, trajectory, own))[0])
    for row, client in enumerate(cohort.clients):
        table = own if client == 1 else COSTS
        expected = exact(client, config.client, 1, cohort.running[row], costs=table)
        for mine, other in zip(grads[client], (expected.theta, expected.alpha), strict=True):
            assert relative_error(mine, other) < 1e-5


@pytest.mark.parametrize(("inner", "tolerance"), [("adam", 0.05), ("sgd, clipped", 1e-3)])
def test_of_a_search_in_single_precision(inner: str, tolerance: float) -> None:
    """What is left is the rounding of the search itself: much where Adam divides by a gradient that
    is nothing but rounding."""
    _, grads = learned(CLIENTS, client_config(**INNER[inner]), torch.float32)
    for client, pair in grads.items():
        expected = truth(client, inner)
        for mine, other in zip(pair, (expected.theta, expected.alpha), strict=True):
            assert mine.dtype == torch.float32
            assert relative_error(mine, other) < tolerance


def test_is_the_slope_of_the_loss_after_the_search() -> None:
    """Brute force: search again from a start moved along a random direction, statistics as before.

    By SGD: Adam turns round a parameter whose gradient is 1e-8 within any step that can be seen.
    """
    config, client, step = client_config(optimizer="sgd", lr=0.05), 1, 1e-7
    cohort, grads = learned([client], config)
    theta, running, alpha = start(PLAN, torch.float64)
    generator = torch.Generator().manual_seed(5)
    directions = [torch.randn(t.shape, generator=generator).double() for t in (theta, alpha)]

    def loss(sign: int) -> float:
        moved = [t + sign * step * d for t, d in zip((theta, alpha), directions, strict=True)]
        end, _ = searched([client], config, epochs=1, start_from=(moved[0], running, moved[1]))
        end.running = cohort.running
        assert end.alpha is not None
        p = (end.alpha[0] / FINAL_TEMPERATURE).softmax(-1)
        excess = expected_cost(COSTS, p[0], p[1]) / BUDGETS[client] - 1
        figures = outer_gradient(adapted(end, config), with_theta=False)[1]
        return float(figures.loss + config.client.penalty * excess)

    slope = sum(float((g * d).sum()) for g, d in zip(grads[client], directions, strict=True))
    assert slope == pytest.approx((loss(1) - loss(-1)) / (2 * step), rel=1e-4)


def test_without_second_derivatives_it_is_fomaml(monkeypatch: pytest.MonkeyPatch) -> None:
    """And with them it is not. Without weight decay, which is a derivative of its own."""
    config = client_config(weight_decay=0.0, alpha_weight_decay=0.0)
    cohort, grads = learned(CLIENTS, config)
    first = by_client(cohort, FOMAML("both")(adapted(cohort, config))[0])
    for client in CLIENTS:
        for second, other in zip(grads[client], first[client], strict=True):
            assert relative_error(second, other) > 0.02
    products = maml.hessian_products

    def nothing(*args: Any) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(part) for part in products(*args))

    monkeypatch.setattr(maml, "hessian_products", nothing)
    _, grads = learned(CLIENTS, config)
    for client in CLIENTS:
        for mine, other in zip(grads[client], first[client], strict=True):
            assert_identical(mine, other)


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_cohort_equals_each_client_alone(optimizer: str, window: int) -> None:
    config = client_config(optimizer=optimizer)
    _, together = learned([0, 1, 2, 3], config, torch.float32, window=window)
    for client, grads in together.items():
        _, alone = learned([client], config, torch.float32, window=window)
        for mine, other in zip(grads, alone[client], strict=True):
            assert_identical(mine, other, f"client {client}")


def test_a_gradient_that_is_not_finite_names_the_client() -> None:
    config, trajectory = client_config(), Trajectory()
    cohort, _ = searched(CLIENTS, config, epochs=1, trajectory=trajectory)
    trajectory.start["theta"][0][cohort.clients.index(1), -1] = torch.nan
    with pytest.raises(DivergenceError, match="round 1: the meta-gradient of client 1 is"):
        MAML("alpha")(adapted(cohort, config, trajectory))
