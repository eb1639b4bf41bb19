"""Relaxations against formulas written out, and draws against the distributions they stand for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from metadnas_ext.config import ClientConfig
from metadnas_ext.search.relaxations import (
    GDAS,
    RELAXATIONS,
    Generators,
    Gumbel,
    Relaxation,
    Sigmoid,
    Softmax,
    gumbel_noise,
    relaxation_of,
)
from metadnas_ext.seeding import generator

CLIENTS, EDGES, CANDIDATES = 3, 5, 4
PROGRESS = torch.tensor([0.0, 0.25, 0.9])


def random_alpha(dtype: torch.dtype = torch.float64) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(CLIENTS, 2, EDGES, CANDIDATES, generator=rng, dtype=dtype)


def generators(count: int = CLIENTS) -> Generators:
    return lambda: [generator(0, "noise", client) for client in range(count)]


def noise() -> Tensor:
    """What a relaxation draws with `generators()`."""
    return gumbel_noise(random_alpha(), generators()())


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    top = max(row)
    exps = [math.exp((value - top) / temperature) for value in row]
    return [e / sum(exps) for e in exps]


def rows(values: Tensor) -> list[list[float]]:
    """All edges of all clients and types, (..., E, O) -> lists of O."""
    return values.flatten(0, -2).tolist()


def stacked(weights: tuple[Tensor, Tensor]) -> Tensor:
    return torch.stack(weights, 1)  # (G, 2, E, O)


def temperatures(relaxation: Relaxation) -> list[float]:
    """Of each client at PROGRESS, one entry an edge."""
    ratio = relaxation.end / relaxation.begin
    each = [relaxation.begin * ratio**share for share in PROGRESS.tolist()]
    return [temperature for temperature in each for _ in range(2 * EDGES)]


@pytest.mark.parametrize("ends", [(1.0, 1.0), (3.0, 3.0), (1.0, 0.5), (5.0, 0.1)])
def test_softmax(ends: tuple[float, float]) -> None:
    alpha, relaxation = random_alpha(), Softmax(*ends)
    drawn = relaxation.sample(alpha, PROGRESS, generators())
    at_rest = relaxation.mixture(alpha)
    assert drawn.chances is drawn.weights
    assert at_rest.chances is at_rest.weights
    scales = temperatures(relaxation)
    for row, own, scale, rest in zip(
        *(rows(alpha), rows(stacked(drawn.weights)), scales, rows(stacked(at_rest.weights))),
        strict=True,
    ):
        assert own == pytest.approx(softmax(row, scale), rel=1e-6)  # temperatures are single
        assert rest == pytest.approx(softmax(row, ends[1]))


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 0.5)])
def test_sigmoid(ends: tuple[float, float]) -> None:
    """Weights independent, chances their shares, scores the logs of the resting weights."""
    alpha, relaxation = random_alpha(), Sigmoid(*ends)
    drawn = relaxation.sample(alpha, PROGRESS, generators())
    for row, own, chances, scale, scores in zip(
        rows(alpha),
        rows(stacked(drawn.weights)),
        rows(stacked(drawn.chances)),
        temperatures(relaxation),
        rows(relaxation.log_scores(alpha)),
        strict=True,
    ):
        expected = [1 / (1 + math.exp(-value / scale)) for value in row]
        assert own == pytest.approx(expected, rel=1e-6)
        assert chances == pytest.approx([e / sum(expected) for e in expected], rel=1e-6)
        last = [value / ends[1] for value in row]
        assert scores == pytest.approx([-math.log1p(math.exp(-value)) for value in last])
    resting = Sigmoid().mixture(alpha)
    expected = torch.sigmoid(alpha)
    torch.testing.assert_close(stacked(resting.weights), expected)
    torch.testing.assert_close(
        Sigmoid().log_chances(alpha).exp(), expected / expected.sum(-1, keepdim=True)
    )


def test_gumbel_noise_is_standard() -> None:
    """Mean is Euler's constant, variance pi^2 / 6, and P(noise < x) = exp(-exp(-x))."""
    like = torch.empty(1, 2, 500, 400)
    drawn = gumbel_noise(like, [generator(0, "many")])
    assert drawn.shape == like.shape
    assert drawn.dtype == like.dtype
    assert float(drawn.mean()) == pytest.approx(0.57722, abs=0.01)
    assert float(drawn.var()) == pytest.approx(math.pi**2 / 6, rel=0.02)
    for x in (-1.0, 0.0, 1.0, 3.0):
        share = float((drawn < x).double().mean())
        assert share == pytest.approx(math.exp(-math.exp(-x)), abs=0.004)
    assert bool(torch.isfinite(drawn).all())


def test_gumbel_weights_are_softmax_of_noisy_logits() -> None:
    alpha, relaxation = random_alpha(), Gumbel(5.0, 0.1)
    drawn = relaxation.sample(alpha, PROGRESS, generators())
    noisy, scales = rows(alpha + noise()), temperatures(relaxation)
    for row, own, scale in zip(noisy, rows(stacked(drawn.weights)), scales, strict=True):
        assert own == pytest.approx(softmax(row, scale), rel=1e-5, abs=1e-9)
    for row, own in zip(rows(alpha), rows(stacked(drawn.chances)), strict=True):
        assert own == pytest.approx(softmax(row))
    assert torch.equal(stacked(relaxation.mixture(alpha).weights), alpha.softmax(-1))


def test_gdas_draws_a_candidate_as_often_as_its_chance() -> None:
    """20 000 draws of each edge: within five standard deviations of softmax(alpha)."""
    draws = 20_000
    alpha = random_alpha()[:1, :, :2].expand(draws, -1, -1, -1)
    rng = torch.Generator().manual_seed(3)
    drawn = GDAS(0.3, 0.3).sample(alpha, torch.zeros(draws), lambda: [rng] * draws)
    weights = stacked(drawn.weights)
    assert torch.equal(weights, (weights == 1).double())
    assert bool((weights.sum(-1) == 1).all())
    p = alpha[0].softmax(-1)
    deviation = (p * (1 - p) / draws).sqrt()
    assert bool(((weights.mean(0) - p).abs() < 5 * deviation).all())


def test_gdas_has_the_gradient_of_gumbel() -> None:
    """J of softmax at the noisy logits, over T, written out; forward the largest noisy logit."""
    alpha = random_alpha().requires_grad_()
    temperature = 0.7
    direction = torch.randn(alpha.shape, generator=generator(1, "direction"), dtype=torch.float64)
    drawn = GDAS(temperature, temperature).sample(alpha, PROGRESS, generators())
    (grad,) = torch.autograd.grad((stacked(drawn.weights) * direction).sum(), alpha)
    noisy = alpha.detach() + noise()
    p = (noisy / temperature).softmax(-1)
    expected = p * (direction - (p * direction).sum(-1, keepdim=True)) / temperature
    torch.testing.assert_close(grad, expected)
    assert torch.equal(stacked(drawn.weights).argmax(-1), noisy.argmax(-1))


@pytest.mark.parametrize("name", list(RELAXATIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
def test_a_client_mixes_as_if_alone(name: str, dtype: torch.dtype) -> None:
    """To the bit, values and gradients; temperature and noise its own. torch's vectorised sigmoid
    and power differ from the scalar ones in one number of some hundreds: hence so many."""
    many = 300
    rng = torch.Generator().manual_seed(0)
    alpha = torch.randn(many, 2, EDGES, CANDIDATES, generator=rng, dtype=dtype)
    progress = torch.rand(many, generator=rng)
    relaxation = RELAXATIONS[name](3.0, 0.2)

    def drawn(clients: slice) -> list[Tensor]:
        leaf = alpha[clients].clone().requires_grad_()
        own = range(many)[clients]
        weights, chances = relaxation.sample(
            leaf, progress[clients], lambda: [generator(0, "x", c) for c in own]
        )
        weighted = sum((w * w).sum() for w in (*weights, *chances))
        assert isinstance(weighted, Tensor)
        scores = relaxation.log_scores(leaf), relaxation.log_chances(leaf)
        return [*weights, *chances, torch.autograd.grad(weighted, leaf)[0], *scores]

    everyone = drawn(slice(None))
    for clients in (slice(3, 12), *(slice(client, client + 1) for client in range(many))):
        for together, apart in zip(everyone, drawn(clients), strict=True):
            assert torch.equal(together[clients], apart)


@pytest.mark.parametrize("name", list(RELAXATIONS))
def test_chances_are_a_distribution(name: str) -> None:
    relaxation = RELAXATIONS[name](2.0, 2.0)
    alpha = random_alpha()
    drawn, resting = relaxation.sample(alpha, PROGRESS, generators()), relaxation.mixture(alpha)
    for p in (*drawn.chances, *resting.chances, relaxation.log_chances(alpha).exp()):
        assert bool((p > 0).all())
        torch.testing.assert_close(p.sum(-1), torch.ones_like(p[..., 0]))


@pytest.mark.parametrize("name", list(RELAXATIONS))
def test_scores_are_logs_of_the_mixture_at_rest(name: str) -> None:
    alpha, relaxation = random_alpha(), RELAXATIONS[name](5.0, 0.1)
    torch.testing.assert_close(
        relaxation.log_scores(alpha), stacked(relaxation.mixture(alpha).weights).log()
    )


def test_temperatures_over_the_rounds() -> None:
    """From 8 to 1/2 over four rounds: halved in each; adaptation goes on from there."""
    config = ClientConfig(relaxation="gdas", temperature=8.0, final_temperature=0.5)
    ends = [relaxation_of(config, r / 4, (r + 1) / 4) for r in range(4)]
    assert [(r.begin, r.end) for r in ends] == [(8, 4), (4, 2), (2, 1), (1, 0.5)]
    assert relaxation_of(config, 1, 1, 0.5) == GDAS(0.5, 0.25)
    assert relaxation_of(config, 0, 1, 0.5) == GDAS(8.0, 0.25)
    assert relaxation_of(ClientConfig(temperature=3.0), 0.3, 0.7) == Softmax(3.0, 3.0)
    assert relaxation_of(ClientConfig(), 1, 1, 0.5) == Softmax(1.0, 0.5)
