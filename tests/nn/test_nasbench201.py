"""NAS-Bench-201's supernet and discrete networks against plain modules in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metadnas_ext.nn import DerivedNet, NASBench201Supernet, NetworkPlan, supernet_plan
from metadnas_ext.nn.functional import cross_entropy
from metadnas_ext.space import (
    DARTS_V2,
    NASBench201Genotype,
    NASBench201Shape,
    cost_table,
    genotype_cost,
)

from . import _bench201
from ._helpers import (
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

ALL = _bench201.OPS
SHUFFLED = ("avg_pool_3x3", "nor_conv_3x3", "none")
MIXED = NASBench201Genotype(
    ("nor_conv_3x3", "skip_connect", "avg_pool_3x3", "none", "nor_conv_1x1", "nor_conv_3x3")
)
CUT = NASBench201Genotype(("nor_conv_3x3", "none", "avg_pool_3x3", "none", "none", "none"))
"""Nothing reaches its output."""
RAGGED = (4, 1, 0, 3)


def tiny(
    candidates: tuple[str, ...] = ALL, n: int = 1, clients: int | None = None, seed: int = 0
) -> NASBench201Supernet:
    net = NASBench201Supernet(
        4, CLASSES, n, image_size=8, candidates=candidates, clients=clients
    ).double()
    randomise(net, seed)
    return net


def without_alpha(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t for name, t in state.items() if name != "alphas_cell"}


def derived(genotype: NASBench201Genotype, n: int = 1, image_size: int = 8) -> DerivedNet:
    net = DerivedNet(NASBench201Shape(4, 3 * n, CLASSES, image_size), genotype).double()
    randomise(net)
    return net


@pytest.mark.parametrize(
    ("candidates", "n", "size"), [(ALL, 1, (8, 8)), (ALL, 2, (7, 9)), (SHUFFLED, 1, (5, 6))]
)
def test_supernet_agrees_with_modules(
    candidates: tuple[str, ...], n: int, size: tuple[int, int]
) -> None:
    """Logits, gradients of everything by name, and buffers afterwards, training and eval."""
    net = tiny(candidates, n)
    plain = _bench201.supernet(4, n, candidates, CLASSES)
    plain.load_state_dict(without_alpha(net.state_dict()), strict=True)
    for training in (True, False):
        x, y = images(4, 3, *size, seed=int(training)), labels(4)
        alpha = net.alphas_cell.detach().clone().requires_grad_()
        outs = net.train(training)(x), plain.train(training)(x, alpha.softmax(-1))
        assert_close(outs[0], outs[1], "logits")
        loss, true_loss = (nn.functional.cross_entropy(out, y) for out in outs)
        expected = gradients(plain, true_loss)
        (expected["alphas_cell"],) = torch.autograd.grad(true_loss, alpha)
        assert_same(gradients(net, loss), expected, 1e-9)
        assert_same(buffers(net), buffers(plain))


@pytest.mark.parametrize("genotype", [MIXED, CUT], ids=str)
def test_derived_network_agrees_with_modules(genotype: NASBench201Genotype) -> None:
    net = derived(genotype)
    plain = _bench201.network(genotype.edges, 4, 1, CLASSES)
    plain.load_state_dict(net.state_dict(), strict=True)
    for training in (True, False):
        x, y = images(4, 3, 7, 8, seed=int(training)), labels(4)
        outs = [m.train(training)(x) for m in (net, plain)]
        assert_close(outs[0], outs[1], "logits")
        losses = [nn.functional.cross_entropy(out, y) for out in outs]
        assert_same(gradients(net, losses[0]), gradients(plain, losses[1]), 1e-9)
        assert_same(buffers(net), buffers(plain))


def test_derive_equals_the_one_hot_supernet() -> None:
    supernet = tiny()
    net = supernet.derive(MIXED)
    plain = _bench201.supernet(4, 1, ALL, CLASSES)
    plain.load_state_dict(without_alpha(supernet.state_dict()))
    chosen = [ALL.index(name) for name in MIXED.edges]
    one_hot = torch.eye(len(ALL), dtype=torch.float64)[chosen]
    for training in (True, False):
        x = images(4, 3, 8, 8, seed=int(training))
        out, truth = net.train(training)(x), plain.train(training)(x, one_hot)
        assert_close(out, truth, "logits")


@pytest.mark.parametrize("genotype", [MIXED, CUT], ids=str)
@pytest.mark.parametrize(("n", "image_size"), [(1, 8), (2, 7)])
def test_costs_are_those_of_the_built_network(
    genotype: NASBench201Genotype, n: int, image_size: int
) -> None:
    net = derived(genotype, n, image_size)
    parameters = sum(p.numel() for p in net.parameters())
    assert genotype_cost(cost_table(net.shape, "params"), genotype) == parameters
    plain = _bench201.network(genotype.edges, 4, n, CLASSES)
    assert genotype_cost(cost_table(net.shape), genotype) == count_macs(plain.eval(), image_size)
    affine = _bench201.network(genotype.edges, 4, n, CLASSES, affine=True)
    table = cost_table(net.shape, "params", affine=True)
    assert genotype_cost(table, genotype) == sum(p.numel() for p in affine.parameters())


def test_clients_of_a_module_equal_modules_alone() -> None:
    """Bit for bit in float32, on one thread: logits, gradients and buffers."""
    cohort = tiny(clients=3).float()
    singles = [tiny().float() for _ in range(3)]
    for g, single in enumerate(singles):
        single.load_state_dict(alone(cohort.state_dict(), g))
    x, y = images(3, 5, 3, 7, 8).float(), labels(3, 5)
    logits = cohort(x)
    grads = gradients(cohort, cross_entropy(logits, y).sum())
    for g, single in enumerate(singles):
        expected = single(x[g])
        assert torch.equal(logits[g], expected)
        loss = nn.functional.cross_entropy(expected, y[g])
        assert_identical(alone(grads, g), gradients(single, loss))
        assert_identical(alone(buffers(cohort), g), buffers(single))


def outcome(
    plan: NetworkPlan,
    theta: Tensor,
    weights: Tensor,
    x: Tensor,
    y: Tensor,
    counts: Tensor | None = None,
) -> dict[str, Tensor]:
    """Logits, gradients and updated statistics of each client."""
    leaves = [t.clone().requires_grad_() for t in (theta, weights)]
    out = plan(leaves[0], (leaves[1],), x, counts=counts)
    losses = cross_entropy(out.logits, y, counts)
    grads = torch.autograd.grad(losses.sum(), leaves)
    running = plan.initial_running(len(x)).to(theta)
    plan.update_running(
        running, out.stats, torch.full((len(x),), x.shape[1]) if counts is None else counts
    )
    return {"losses": losses.detach(), "theta": grads[0], "weights": grads[1], "running": running}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ragged_clients_equal_each_alone(dtype: torch.dtype) -> None:
    """Bit for bit, whatever lies where images do not count."""
    plan = supernet_plan(NASBench201Shape(4, 3, CLASSES, 8))
    theta = (0.5 * images(4, plan.parameters.size)).to(dtype)
    weights = mixture(4, 6, len(ALL), seed=2).detach().to(dtype)
    x, y = images(4, 4, 8, 8, 3, seed=3).to(dtype), labels(4, 4)
    for g, count in enumerate(RAGGED):
        x[g, count:] = 1e10
    together = outcome(plan, theta, weights, x, y, torch.tensor(RAGGED))
    for g, count in enumerate(RAGGED):
        if count:
            row = slice(g, g + 1)
            own = outcome(plan, theta[row], weights[row], x[row, :count], y[row, :count])
            assert_identical(alone(together, g), alone(own, 0))
        else:
            assert not together["theta"][g].any()
            assert torch.equal(together["running"][g], plan.initial_running(1)[0].to(dtype))


def test_published_text_makes_a_network() -> None:
    text = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_1x1~2|"
    net = DerivedNet(NASBench201Shape(image_size=8), NASBench201Genotype.parse(text))
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    assert net.state_dict()["cells.16.layers.5.op.1.weight"].shape == (64, 64, 1, 1)
    assert net.state_dict()["cells.5.downsample.1.weight"].shape == (32, 16, 1, 1)


def test_first_values_are_the_modules_own() -> None:
    """Batch norms at 1 and 0, convolutions within Kaiming's bound, from the generator alone."""
    plan = supernet_plan(NASBench201Shape(4, 3, CLASSES, 8))
    rows = [plan.initial(2, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    for name, view in plan.parameters.views(rows[0]).items():
        assert torch.equal(view[0], view[1])
        if ".op.2." in name or name.startswith(("lastact", "stem.1")):
            assert torch.equal(view, torch.full_like(view, name.endswith("weight")))
        elif view.dim() == 5:
            bound = view[0, 0].numel() ** -0.5
            assert 0.5 * bound < float(view.abs().max()) <= bound * (1 + 1e-6)


def test_misfits() -> None:
    shape = NASBench201Shape(4, 3, candidates=("none", "skip_connect"))
    with pytest.raises(ValueError, match="no candidate 'nor_conv_3x3' here, only none, skip"):
        DerivedNet(shape, MIXED)
    with pytest.raises(ValueError, match="is not a NAS-Bench-201 architecture"):
        DerivedNet(NASBench201Shape(4, 3), DARTS_V2)
