"""A recorded search, replayed: the states it went through, and its losses there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metadnas_ext.search.trajectory import Trajectory

from ..federated._tiny import assert_identical
from ._clients import client_config, searched

TOTALS = {3: 6, 0: 3, 1: 2, 2: 1}
"""Steps of each client, in the order of a cohort."""


class Spy(Trajectory):
    """Keeps what every step really started from."""

    def __init__(self, window: int) -> None:
        super().__init__(window)
        self.seen: list[list[Tensor]] = []

    def record(self, name: str, optimizer: Any, *rest: Any) -> None:
        before = len(self.steps)
        super().record(name, optimizer, *rest)
        if len(self.steps) > before:
            clients = self.steps[-1].clients
            self.seen.append([tensor[clients].clone() for tensor in optimizer.tensors])


def recorded(
    window: int = 0, dtype: torch.dtype = torch.float64, epochs: int = 1, **changes: Any
) -> Spy:
    spy = Spy(window)
    searched(list(TOTALS), client_config(**changes), dtype, epochs, trajectory=spy)
    return spy


@pytest.mark.parametrize("warmup", [0, 1])
@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
def test_every_state_comes_back(
    dtype: torch.dtype, optimizer: str, window: int, warmup: int
) -> None:
    """To the bit, moments included, from the last step to the first."""
    spy = recorded(window, dtype, 1 + warmup, optimizer=optimizer, alpha_warmup=warmup)
    assert [step for _, step in spy.reversed()] == spy.steps[::-1]
    for (state, step), seen in zip(spy.reversed(), spy.seen[::-1], strict=True):
        for mine, other in zip(state[step.name], seen, strict=True):
            assert_identical(mine[step.clients], other, f"{step.name} at {step.done}")


@pytest.mark.parametrize("window", [0, 1, 4])
def test_window_holds_each_clients_last_steps(window: int) -> None:
    """One on α and one on w each, and no more numbers than those."""
    spy = recorded(window)
    expected, clients = [], list(TOTALS)
    for done in range(max(TOTALS.values())):
        for name in ("alpha", "theta"):
            near = [c for c, n in TOTALS.items() if n - (window or n) <= done < n]
            if near:
                expected.append((name, done, near))
    assert [(s.name, s.done, clients[s.clients]) for s in spy.steps] == expected
    kept = sum(s.grad.untyped_storage().nbytes() for s in spy.steps if s.name == "theta")
    width = spy.start["theta"][0].shape[1]
    assert kept == sum(min(n, window or n) for n in TOTALS.values()) * width * 8


@pytest.mark.parametrize("window", [0, 3])
def test_steps_on_alpha_begin_behind_the_warm_up(window: int) -> None:
    """Each client's own; those with short epochs leave it first."""
    spy, clients = recorded(window, epochs=2, alpha_warmup=1), list(TOTALS)
    expected = [
        (done, [c for c, n in TOTALS.items() if max(n, 2 * n - (window or 2 * n)) <= done < 2 * n])
        for done in range(2 * max(TOTALS.values()))
    ]
    found = [(s.done, clients[s.clients]) for s in spy.steps if s.name == "alpha"]
    assert found == [(done, near) for done, near in expected if near]


@pytest.mark.parametrize(
    "changes",
    [
        {"penalty_kind": "linear"},
        {"penalty_kind": "dual"},
        {"relaxation": "gumbel"},
        {"relaxation": "sigmoid"},
        {"alpha_warmup": 1, "penalty_kind": "dual", "relaxation": "gumbel"},
    ],
    ids=str,
)
def test_losses_of_a_step_have_the_gradient_it_took(changes: dict[str, Any]) -> None:
    """Batches, temperature, noise, pull and multipliers as they were."""
    spy = recorded(epochs=1 + changes.get("alpha_warmup", 0), **changes)
    server = spy.start["alpha"][0]
    for state, step in spy.reversed():
        leaves = {name: state[name][0][step.clients].requires_grad_() for name in state}
        losses = step.losses(leaves["theta"], leaves["alpha"], server[step.clients])
        (grad,) = torch.autograd.grad(losses.sum(), leaves[step.name])
        torch.testing.assert_close(grad, step.grad, rtol=1e-12, atol=1e-14)
