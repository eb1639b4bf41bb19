"""Partial channels and edge normalisation against plain modules with PC-DARTS' definition."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metadnas_ext.errors import ConfigError
from metadnas_ext.nn import DerivedNet, Supernet, supernet_plan
from metadnas_ext.nn.functional import cross_entropy
from metadnas_ext.nn.unfused import scaled
from metadnas_ext.space import Genotype, NetworkShape, cost_table, genotype_cost

from . import _darts
from ._helpers import (
    ALPHAS,
    CLASSES,
    alone,
    assert_close,
    assert_identical,
    assert_same,
    buffers,
    gradients,
    images,
    labels,
    mixture,
    randomise,
)
from .test_derived import count_macs

BETAS = ("betas_normal", "betas_reduce")
CANDIDATES = ("none", "skip_connect", "sep_conv_3x3", "max_pool_3x3")
C = 8
GENOTYPE = Genotype.of(
    normal=(("sep_conv_3x3", 1), ("skip_connect", 0), ("max_pool_3x3", 2), ("sep_conv_3x3", 1)),
    reduce=(("skip_connect", 1), ("max_pool_3x3", 0), ("sep_conv_3x3", 2), ("sep_conv_3x3", 0)),
)
RAGGED = (4, 1, 0, 3)


class Partial(nn.Module):
    """The first C / k channels through the candidates, the rest past them, then a shuffle."""

    def __init__(self, k: int, c: int, stride: int, op: nn.Module) -> None:
        super().__init__()
        self.k, self.own, self.stride = k, c // k, stride
        self.op = op

    def forward(self, x: Tensor, *weights: Tensor) -> Tensor:
        mixed, past = self.op(x[:, : self.own], *weights), x[:, self.own :]
        if self.stride == 2:
            past = F.max_pool2d(past, 2, 2, ceil_mode=True)
        out = torch.cat([mixed, past], 1)
        n, c, h, w = out.shape
        return out.view(n, self.k, c // self.k, h, w).transpose(1, 2).reshape(n, c, h, w)


class Edge(nn.Module):
    """The last of the weights is that of the edge."""

    def __init__(self, partial: Partial) -> None:
        super().__init__()
        self.partial = partial

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return weights[-1] * self.partial(x, weights[:-1])


def plain_supernet(k: int, candidates: Sequence[str], layers: int = 3) -> _darts.Network:
    def wire(c: int, reduction: bool) -> _darts.Wiring:
        places = [(source, node) for node in range(2) for source in range(2 + node)]
        strides = [2 if reduction and source < 2 else 1 for source, _ in places]
        return [
            (*place, Edge(Partial(k, c, stride, _darts.MixedOp(c // k, stride, candidates))))
            for place, stride in zip(places, strides, strict=True)
        ]

    return _darts.Network(wire, C, layers, 2, CLASSES, 3, 3)


def plain_derived(k: int, genotype: Genotype) -> _darts.Network:
    def wire(c: int, reduction: bool) -> _darts.Wiring:
        pairs = genotype.reduce if reduction else genotype.normal
        strides = [2 if reduction and source < 2 else 1 for _, source in pairs]
        return [
            (source, i // 2, Partial(k, c, stride, _darts.OPS[name](c // k, stride, False)))
            for i, ((name, source), stride) in enumerate(zip(pairs, strides, strict=True))
        ]

    return _darts.Network(wire, C, 3, 2, CLASSES, 3, 3)


def load(plain: nn.Module, state: dict[str, Tensor]) -> None:
    plain.load_state_dict({theirs: state[ours] for ours, theirs in names(plain).items()})


def names(plain: nn.Module) -> dict[str, str]:
    """Our name of each of the plain network's tensors."""
    found = {}
    for name in plain.state_dict():
        parts = name.split(".")
        if parts[0] == "cells" and parts[2] == "_ops":
            # cells.<i>._ops.<e>. then partial.op. or op., the wrappers
            parts = parts[:4] + parts[6 if parts[4] == "partial" else 5 :]
        found[".".join(parts)] = name
    return found


def by_our_names(plain: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {ours: tensors[theirs] for ours, theirs in names(plain).items() if theirs in tensors}


def edge_weights(beta: Tensor) -> Tensor:
    """softmax over the edges into each of the two nodes: 2, then 3."""
    return torch.cat([beta[:2].softmax(0), beta[2:].softmax(0)])


def supernet(k: int, candidates: tuple[str, ...] = CANDIDATES, **options: object) -> Supernet:
    net = Supernet(
        C, CLASSES, 3, nodes=2, image_size=8, candidates=candidates, partial=k, **options
    ).double()
    randomise(net)
    return net


@pytest.mark.parametrize(("k", "size"), [(2, (8, 8)), (4, (7, 9))])
def test_supernet_agrees_with_modules(k: int, size: tuple[int, int]) -> None:
    """Logits, gradients of everything with α and β, and buffers, training and eval."""
    net, plain = supernet(k), plain_supernet(k, CANDIDATES)
    load(plain, net.state_dict())
    for training in (True, False):
        x, y = images(4, 3, *size, seed=int(training)), labels(4)
        arch = {
            name: net.get_parameter(name).detach().clone().requires_grad_()
            for name in (*ALPHAS, *BETAS)
        }
        weights = [
            torch.cat([arch[a].softmax(-1), edge_weights(arch[b])[:, None]], 1)
            for a, b in zip(ALPHAS, BETAS, strict=True)
        ]
        outs = net.train(training)(x), plain.train(training)(x, *weights)
        assert_close(outs[0], outs[1], "logits")
        loss, truth = (nn.functional.cross_entropy(out, y) for out in outs)
        expected = by_our_names(plain, gradients(plain, truth))
        grads = torch.autograd.grad(truth, list(arch.values()))
        expected |= dict(zip(arch, grads, strict=True))
        assert_same(gradients(net, loss), expected, 1e-9)
        assert_same(buffers(net), by_our_names(plain, buffers(plain)))


@pytest.mark.parametrize("k", [2, 4])
def test_derived_network_agrees_with_modules(k: int) -> None:
    shape = NetworkShape(C, 3, 2, CLASSES, image_size=8, candidates=CANDIDATES, partial=k)
    net = DerivedNet(shape, GENOTYPE).double()
    randomise(net)
    plain = plain_derived(k, GENOTYPE)
    load(plain, net.state_dict())
    for training in (True, False):
        x, y = images(4, 3, 8, 8, seed=int(training)), labels(4)
        outs = [m.train(training)(x) for m in (net, plain)]
        assert_close(outs[0], outs[1], "logits")
        losses = [nn.functional.cross_entropy(out, y) for out in outs]
        expected = by_our_names(plain, gradients(plain, losses[1]))
        assert_same(gradients(net, losses[0]), expected, 1e-9)
    parameters = sum(p.numel() for p in plain.parameters())
    assert genotype_cost(cost_table(shape, "params"), GENOTYPE) == parameters
    assert genotype_cost(cost_table(shape), GENOTYPE) == count_macs(plain.eval(), 8)


def test_derive_inherits() -> None:
    """With one-hot weights and edges that count 1 the supernet is the derived network."""
    net = supernet(2)
    derived = net.derive(GENOTYPE).eval()
    places = [(source, node) for node in range(2) for source in range(2 + node)]
    weights = []
    for pairs in (GENOTYPE.normal, GENOTYPE.reduce):
        one_hot = torch.zeros(1, 5, len(CANDIDATES) + 1, dtype=torch.float64)
        for i, (name, source) in enumerate(pairs):
            edge = places.index((source, i // 2))
            one_hot[0, edge, [CANDIDATES.index(name), -1]] = 1
        weights.append(one_hot)
    x = images(4, 3, 8, 8)
    last = x.permute(0, 2, 3, 1)[None]  # (1, N, H, W, C)
    out = net.plan(net.flat(), tuple(weights), last, running=net.flat_running())
    assert_close(derived(x), out.logits[0], "logits")


def test_genotype_weighs_edges() -> None:
    """The two edges with the largest product of edge weight and probability, not of p alone."""
    net = supernet(2, clients=2)
    with torch.no_grad():
        net.betas_normal[1] = torch.tensor([0.0, 0.0, -9.0, 0.0, 0.0])
        net.alphas_normal[1].zero_()
        net.alphas_normal[1, 2, 2] = 5.0  # the surest edge is the one of least weight
    genotype = net.genotype(client=1)
    assert isinstance(genotype, Genotype)
    assert [source for _, source in genotype.normal[2:]] == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ragged_clients_equal_each_alone(dtype: torch.dtype) -> None:
    """Bit for bit, gradients of the edges' weights included."""
    shape = NetworkShape(C, 3, 2, CLASSES, image_size=8, candidates=CANDIDATES, partial=4)
    plan = supernet_plan(shape)
    theta = (0.5 * images(4, plan.parameters.size)).to(dtype)
    weights = [mixture(4, 5, len(CANDIDATES) + 1, seed=s).detach().to(dtype) for s in (2, 3)]
    x, y = images(4, 4, 8, 8, 3, seed=4).to(dtype), labels(4, 4)
    for g, count in enumerate(RAGGED):
        x[g, count:] = 1e10

    def outcome(rows: slice, width: int, counts: Tensor | None) -> dict[str, Tensor]:
        leaves = [t[rows].clone().requires_grad_() for t in (theta, *weights)]
        out = plan(leaves[0], (leaves[1], leaves[2]), x[rows, :width], counts=counts)
        losses = cross_entropy(out.logits, y[rows, :width], counts)
        grads = torch.autograd.grad(losses.sum(), leaves)
        found = dict(zip(("theta", "normal", "reduce"), grads, strict=True))
        return {"losses": losses.detach(), "stats": out.stats, **found}

    together = outcome(slice(0, 4), 4, torch.tensor(RAGGED))
    for g, count in enumerate(RAGGED):
        if count:
            assert_identical(alone(together, g), alone(outcome(slice(g, g + 1), count, None), 0))


def test_factors_of_edges_do_not_depend_on_the_cohort() -> None:
    """On two threads, where torch cuts one long sum but not three: x is large enough for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        x, grad = images(2, 3, 8, 32, 32, 16).float()
        scale = torch.ones(3, requires_grad=True)
        for counts in (None, [8, 5, 8]):
            (together,) = torch.autograd.grad(scaled(x, scale, counts), scale, grad)
            for g in range(3):
                used = 8 if counts is None else counts[g]
                own = scaled(x[g : g + 1, :used], scale[g : g + 1], None)
                (alone_,) = torch.autograd.grad(own, scale, grad[g : g + 1, :used])
                assert torch.equal(alone_[g], together[g])
    finally:
        torch.set_num_threads(threads)


def test_wrong_parts() -> None:
    with pytest.raises(ConfigError, match="partial is 3: it must divide the 8 channels"):
        Supernet(8, partial=3)
    with pytest.raises(ConfigError, match="partial must be at least 1, got 0"):
        Supernet(8, partial=0)
