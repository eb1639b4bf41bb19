"""The server's step and its aggregators against independent computations."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metadnas_ext.config import Config, ServerConfig
from metadnas_ext.errors import ConfigError
from metadnas_ext.meta import ServerState, Update, server_step
from metadnas_ext.meta.base import LEARNED

from ..federated._tiny import assert_close, assert_identical
from ..search._clients import random_rows

ROBUST = ["median", "trimmed_mean", "krum", "multi_krum", "geometric_median"]
RATES = {"theta": 0.02, "alpha": 0.01}


def config(**changes: Any) -> ServerConfig:
    return replace(ServerConfig(), w_lr=RATES["theta"], alpha_lr=RATES["alpha"], **changes)


@functools.cache
def round_of(index: int, clients: int = 3) -> tuple[Update, Tensor]:
    """What clients send, theta (G, 11), running (G, 6), alpha (G, 2, 5, 4), and their sizes (G)."""
    theta, running, alpha = (
        random_rows(clients, width, 10 * index + k) for k, width in enumerate((11, 6, 40))
    )
    sizes = torch.tensor([10.0, 1.0, 30.0, 7.0, 12.0, 5.0, 9.0]).double()[:clients] + index
    return Update(theta, running, alpha.view(clients, 2, 5, 4)), sizes


def fresh_server(on: str = "alpha") -> ServerState:
    theta, running, alpha = (random_rows(1, width, 99)[0] for width in (11, 6, 40))
    return ServerState.start(theta, running, alpha.view(2, 5, 4), LEARNED[on])


def mean(parts: Tensor, sizes: Tensor) -> Tensor:
    return torch.einsum("g,g...->...", sizes / sizes.sum(), parts)


@pytest.mark.parametrize("on", list(LEARNED))
def test_torchs_adam_on_what_is_learned_and_the_mean_of_the_rest(on: str) -> None:
    server = fresh_server(on)
    mine = {name: vars(server)[name].clone().requires_grad_() for name in LEARNED[on]}
    optimizers = {name: torch.optim.Adam([row], lr=RATES[name]) for name, row in mine.items()}
    for index in range(5):
        update, sizes = round_of(index)
        server_step(server, update, sizes, config())
        for name, parts in update._asdict().items():
            if name in mine:
                mine[name].grad = mean(parts, sizes)
                optimizers[name].step()
                expected = mine[name].detach()
            else:
                expected = mean(parts, sizes)
            assert_close(vars(server)[name], expected, 1e-12, f"{name} in round {index}")


@pytest.mark.parametrize("on", list(LEARNED))
def test_goes_on_from_saved_tensors(on: str) -> None:
    """A state rebuilt from its tensors after every round ends where an untouched one does."""
    whole, pieces = fresh_server(on), fresh_server(on)
    for index in range(4):
        server_step(whole, *round_of(index), config())
        server_step(pieces, *round_of(index), config())
        pieces = ServerState.of({name: t.clone() for name, t in pieces.tensors().items()})
    assert pieces.tensors().keys() == whole.tensors().keys()
    for name, tensor in whole.tensors().items():
        assert_identical(pieces.tensors()[name], tensor, name)


def test_moments_are_of_what_is_learned_only() -> None:
    shared = {"theta", "running", "alpha"}
    for on, names in LEARNED.items():
        moments = {f"{name}_{m}" for name in names for m in ("mean", "square", "steps")}
        assert set(fresh_server(on).tensors()) == shared | moments


def test_a_client_alone_hands_its_weights_to_the_server() -> None:
    server = fresh_server()
    update, sizes = round_of(0)
    alone = Update(*(part[:1] for part in update))
    server_step(server, alone, sizes[:1], replace(config(), alpha_lr=0.0))
    assert_identical(server.theta, update.theta[0])
    assert_identical(server.running, update.running[0])
    assert_identical(server.alpha, fresh_server().alpha)


def combined(
    update: Update, sizes: Tensor, relative: bool = True, **changes: Any
) -> dict[str, Tensor]:
    """The aggregate itself: of a rate of 1 and nothing learned."""
    server = fresh_server("alpha")
    server.moments.clear()
    server_step(server, update, sizes, config(**changes), relative)
    return server.tensors()


def centred(alpha: Tensor) -> Tensor:
    return alpha - alpha.mean(-1, keepdim=True)


def test_median_and_trimmed_mean_are_numpys() -> None:
    update, sizes = round_of(0, 7)
    rows = {**update._asdict(), "alpha": centred(update.alpha)}
    median = combined(update, sizes, aggregator="median")
    trimmed = combined(update, sizes, aggregator="trimmed_mean", trim=0.2)
    for name, parts in rows.items():
        assert_close(median[name], torch.tensor(np.median(parts.numpy(), 0)), 1e-14)
        middle = np.sort(parts.numpy(), 0)[1:-1]
        assert_close(trimmed[name], torch.tensor(middle.mean(0)), 1e-14)


def distances(update: Update) -> Tensor:
    """Between whole clients, α centred: (G, G)."""
    flat = [part.flatten(1) for part in (update.theta, update.running, centred(update.alpha))]
    rows = torch.cat(flat, 1)
    return (rows[:, None] - rows[None]).norm(dim=-1)


@pytest.mark.parametrize(("byzantine", "select"), [(None, None), (1, 3), (2, None), (0, 1)])
def test_krum_takes_the_clients_nearest_to_their_neighbours(
    byzantine: int | None, select: int | None
) -> None:
    """Blanchard et al.: the least sum of squared distances to the G - f - 2 nearest others."""
    update, sizes = round_of(0, 7)
    bad = 2 if byzantine is None else byzantine
    squared = distances(update).square()
    scores = squared.sort(1).values[:, 1 : 1 + 7 - bad - 2].sum(1)
    order = scores.argsort()
    for how, count in (("krum", 1), ("multi_krum", select or 7 - bad)):
        found = combined(update, sizes, aggregator=how, byzantine=byzantine, select=select)
        chosen = order[:count]
        for name, parts in update._asdict().items():
            parts = centred(parts) if name == "alpha" else parts
            assert_close(found[name], parts[chosen].mean(0), 1e-13, f"{how}: {name}")


def test_geometric_median_is_where_weighted_directions_cancel() -> None:
    update, sizes = round_of(0, 7)
    found = combined(update, sizes, aggregator="geometric_median")
    names = ("theta", "running", "alpha")
    centre = torch.cat([found[name].flatten() for name in names])
    rows = torch.cat([update.theta, update.running, centred(update.alpha).flatten(1)], 1)
    away = rows - centre
    pull = (sizes[:, None] * away / away.norm(dim=1, keepdim=True)).sum(0)
    assert float(pull.norm()) < 1e-4 * float(sizes.sum())


@pytest.mark.parametrize("how", ROBUST)
def test_constants_on_edges_of_alpha_change_nothing(how: str) -> None:
    """Softmax does not see them, whatever a client's were."""
    update, sizes = round_of(0, 7)
    moved = update._replace(alpha=update.alpha + 50 * random_rows(7, 10, 3).view(7, 2, 5, 1))
    one, two = (combined(u, sizes, aggregator=how) for u in (update, moved))
    for name in ("theta", "running", "alpha"):
        assert_close(two[name], one[name], 1e-9, name)


@pytest.mark.parametrize("how", ROBUST)
def test_constants_that_matter_are_kept(how: str) -> None:
    """Sigmoids see them: a constant that all clients share comes out as it went in."""
    update, sizes = round_of(0, 7)
    shift = random_rows(1, 10, 3).view(2, 5, 1)
    moved = update._replace(alpha=update.alpha + shift)
    one, two = (combined(u, sizes, relative=False, aggregator=how) for u in (update, moved))
    assert_close(two["alpha"], one["alpha"] + shift, 1e-9)
    if how == "median":
        assert_close(one["alpha"], torch.tensor(np.median(update.alpha.numpy(), 0)), 1e-14)
    for name in ("theta", "running"):
        assert_close(two[name], one[name], 1e-9, name)


@pytest.mark.parametrize("how", ROBUST)
def test_two_of_seven_clients_cannot_carry_it_away(how: str) -> None:
    update, sizes = round_of(0, 7)
    wild = Update(*(part.clone() for part in update))
    for part in wild:
        part[2], part[5] = 1e6, -3e6
    found = combined(wild, sizes, aggregator=how, trim=0.3)
    for name, parts in update._asdict().items():
        largest = float(parts.abs().max())
        assert float(found[name].abs().max()) < 3 * largest, name
    assert float(combined(wild, sizes)["theta"].abs().max()) > 1e5  # the mean they can


@pytest.mark.parametrize("clients", [1, 2, 3])
@pytest.mark.parametrize("how", ROBUST)
def test_fewer_clients_than_were_asked_for(how: str, clients: int) -> None:
    """Of a round in which some were dropped: somewhere among those that are left."""
    update, sizes = round_of(0, clients)
    found = combined(update, sizes, aggregator=how, byzantine=2, select=5, trim=0.4)
    for name, parts in {**update._asdict(), "alpha": centred(update.alpha)}.items():
        assert bool((found[name] >= parts.amin(0) - 1e-12).all())
        assert bool((found[name] <= parts.amax(0) + 1e-12).all())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"aggregator": "krum", "byzantine": 3}, r"server.byzantine is 3, .* there are 8"),
        ({"aggregator": "multi_krum", "select": 9}, r"server.select is 9, .* 8 clients"),
        ({"aggregator": "similarity"}, r"server.aggregator is 'similarity', expected one of mean"),
    ],
)
def test_what_a_round_cannot_give(values: dict[str, Any], message: str) -> None:
    """Ten clients, eight of them seen."""
    with pytest.raises(ConfigError, match=message):
        Config().updated({f"server.{key}": value for key, value in values.items()})
    Config().updated({"server.aggregator": "krum", "server.byzantine": 2})
