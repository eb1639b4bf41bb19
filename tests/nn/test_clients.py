"""The client axis: G clients at once are each client alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from metadnas_ext.nn import DerivedNet, NetworkPlan, Supernet, supernet_plan
from metadnas_ext.nn.functional import correct, cross_entropy
from metadnas_ext.nn.stages import Weights
from metadnas_ext.space import PRIMITIVES, Genotype, NetworkShape

from ._helpers import (
    CLASSES,
    FEW,
    alone,
    assert_identical,
    buffers,
    gradients,
    images,
    labels,
    mixture,
    randomise,
    tiny_supernet,
)

RAGGED = [4, 1, 0, 3]
"""Images that count of each client; N = 4."""


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("nodes", "candidates", "dtype"),
    [(4, FEW, torch.float64), (2, PRIMITIVES, torch.float64), (2, FEW, torch.float32)],
)
def test_supernet_equals_single_ones(
    nodes: int, candidates: tuple[str, ...], dtype: torch.dtype, training: bool
) -> None:
    cohort, *singles = (
        tiny_supernet(nodes=nodes, candidates=candidates, clients=clients).to(dtype).train(training)
        for clients in (3, None, None, None)
    )
    for g, single in enumerate(singles):
        single.load_state_dict(alone(cohort.state_dict(), g), strict=True)
    assert_equals_singles(cohort, singles)


def test_derived_net_equals_single_ones() -> None:
    pairs = (("sep_conv_3x3", 0), ("avg_pool_3x3", 1), ("skip_connect", 0), ("dil_conv_5x5", 2))
    genotype = Genotype.of(pairs, pairs)
    shape = NetworkShape(4, 3, 2, CLASSES, image_size=8)
    cohort = DerivedNet(shape, genotype, clients=3).double()
    randomise(cohort)
    singles = [DerivedNet(shape, genotype).double() for _ in range(3)]
    for g, single in enumerate(singles):
        single.load_state_dict(alone(cohort.state_dict(), g), strict=True)
    assert_equals_singles(cohort, singles)


def assert_equals_singles(
    cohort: Supernet | DerivedNet, singles: list[Supernet] | list[DerivedNet]
) -> None:
    """Bit for bit (on one thread): logits, gradients and buffers, over two batches."""
    dtype = cohort.flat().dtype
    for seed in range(2):
        x, y = images(3, 5, 3, 8, 8, seed=seed).to(dtype), labels(3, 5)
        logits = cohort(x)
        grads = gradients(cohort, cross_entropy(logits, y).sum())
        for g, single in enumerate(singles):
            expected = single(x[g])
            assert torch.equal(logits[g], expected)
            loss = torch.nn.functional.cross_entropy(expected, y[g])
            assert_identical(alone(grads, g), gradients(single, loss))
            assert_identical(alone(buffers(cohort), g), buffers(single))


class Cohort:
    """Random clients of one plan, with unequal numbers of images."""

    def __init__(self, images_each: int = 4, clients: int = len(RAGGED)) -> None:
        self.plan: NetworkPlan = supernet_plan(
            NetworkShape(4, 3, 2, CLASSES, image_size=8, candidates=FEW)
        )
        self.theta = images(clients, self.plan.parameters.size) * 0.5
        self.running = images(clients, self.plan.running.size, seed=1).abs() + 0.5
        self.weights: Weights = tuple(mixture(clients, 5, len(FEW), seed=s) for s in (2, 3))
        self.x = images(clients, images_each, 8, 8, 3, seed=4)
        self.y = labels(clients, images_each)
        self.counts: Tensor | None = torch.tensor(RAGGED[:clients])

    def clone(self) -> Cohort:
        other = Cohort()
        other.__dict__.update(self.__dict__)
        other.theta, other.running, other.x = (
            t.clone() for t in (self.theta, self.running, self.x)
        )
        return other

    def client(self, g: int) -> Cohort:
        """Client g with only its own images, and no counts."""
        other = Cohort()
        for name in ("theta", "running"):
            setattr(other, name, getattr(self, name)[g : g + 1])
        other.weights = tuple(w[g : g + 1] for w in self.weights)
        other.x, other.y = (t[g : g + 1, : RAGGED[g]] for t in (self.x, self.y))
        other.counts = None
        return other

    def run(self, training: bool = True) -> dict[str, Tensor]:
        """Logits, losses, hits, gradients and updated statistics, each with the client axis."""
        leaves = [t.detach().requires_grad_() for t in (self.theta, *self.weights, self.x)]
        theta, normal, reduce, x = leaves
        running = None if training else self.running
        out = self.plan(theta, (normal, reduce), x, running=running, counts=self.counts)
        losses = cross_entropy(out.logits, self.y, self.counts)
        names = ("of theta", "of normal", "of reduce", "of x")
        grads = torch.autograd.grad(losses.sum(), leaves)
        updated = self.running.clone()
        if training:
            counts = torch.full((len(x),), x.shape[1]) if self.counts is None else self.counts
            self.plan.update_running(updated, out.stats, counts)
        return {
            "logits": out.logits.detach(),
            "losses": losses.detach(),
            "correct": correct(out.logits, self.y, self.counts),
            "running": updated,
            **dict(zip(names, grads, strict=True)),
        }


def own_images(results: dict[str, Tensor], g: int) -> dict[str, Tensor]:
    """One client's results; per image, of its own images only."""
    cut = alone(results, g)
    return cut | {name: cut[name][: RAGGED[g]] for name in ("logits", "of x")}


def damaged(cohort: Cohort) -> Iterator[Cohort]:
    """The cohort with client 0 as it was, and others that are very different or not finite."""
    for value in (0.0, 1e3, float("nan"), float("inf")):
        other = cohort.clone()
        other.theta[1:], other.x[1:], other.running[1:] = value, value, abs(value)
        yield other


@pytest.mark.parametrize("training", [True, False])
def test_ragged_clients_equal_each_alone(training: bool) -> None:
    cohort = Cohort()
    results = cohort.run(training)
    for g, count in enumerate(RAGGED):
        if count:
            expected = alone(cohort.client(g).run(training), 0)
            assert_identical(own_images(results, g), expected)


@pytest.mark.parametrize("training", [True, False])
def test_client_without_images_learns_nothing(training: bool) -> None:
    cohort = Cohort()
    results, g = cohort.run(training), RAGGED.index(0)
    for name in ("of theta", "of normal", "of reduce", "of x", "losses", "correct"):
        assert not results[name][g].any(), name
    assert torch.equal(results["running"][g], cohort.running[g])


@pytest.mark.parametrize("training", [True, False])
def test_images_that_do_not_count_reach_nothing(training: bool) -> None:
    cohort = Cohort()
    before = cohort.run(training)
    for g, count in enumerate(RAGGED):
        cohort.x[g, count:] = 1e20
        cohort.y[g, count:] = 0
    after = cohort.run(training)
    for g in range(len(RAGGED)):
        assert_identical(own_images(after, g), own_images(before, g))
        assert not after["of x"][g, RAGGED[g] :].any()


def test_clients_do_not_reach_each_other() -> None:
    cohort = Cohort()
    expected = alone(cohort.run(), 0)
    for other in damaged(cohort):
        assert_identical(alone(other.run(), 0), expected)


def test_gradient_of_one_clients_loss() -> None:
    cohort = Cohort()
    cohort.counts = None
    theta = cohort.theta.requires_grad_()
    out = cohort.plan(theta, cohort.weights, cohort.x)
    grads = torch.autograd.grad(out.logits[1].square().sum(), (theta, *cohort.weights))
    for grad in grads:
        assert grad[1].any()
        assert not grad[[0, 2, 3]].any()


def test_mixed_edges_need_weights() -> None:
    cohort = Cohort()
    with pytest.raises(ValueError, match="weights must not be None"):
        cohort.plan(cohort.theta, None, cohort.x)


def test_loss_and_hits_of_padded_images() -> None:
    logits, y = images(3, 4, CLASSES), labels(3, 4)
    counts = torch.tensor([4, 2, 0])
    logits[1, 2:] = float("nan")
    losses, hits = cross_entropy(logits, y, counts), correct(logits, y, counts)
    assert losses[2] == hits[2] == 0
    for g, count in enumerate([4, 2]):
        own, own_y = logits[g, :count], y[g, :count]
        assert torch.equal(losses[g], torch.nn.functional.cross_entropy(own, own_y))
        assert hits[g] == int((own.argmax(1) == own_y).sum())
    assert torch.equal(cross_entropy(logits[:1], y[:1]), losses[:1])
    assert torch.equal(correct(logits[:1], y[:1]), hits[:1])
