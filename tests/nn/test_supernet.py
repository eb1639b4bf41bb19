"""`Supernet` against a plain eager DARTS supernet in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metadnas_ext.errors import ConfigError
from metadnas_ext.nn import Supernet
from metadnas_ext.search import discretize
from metadnas_ext.space import PRIMITIVES, CostTable, DARTSCells, cost_table, edges

from . import _darts
from ._helpers import (
    ALPHAS,
    CLASSES,
    FEW,
    assert_close,
    assert_identical,
    assert_same,
    buffers,
    gradients,
    images,
    labels,
    tiny_supernet,
    without_alphas,
)

SHAPES = [  # layers, nodes, candidates, image (H, W)
    (1, 2, FEW, (8, 8)),
    (2, 4, FEW, (8, 8)),
    (3, 2, PRIMITIVES, (8, 8)),
    (3, 4, ("dil_conv_3x3", "max_pool_3x3"), (6, 8)),
    (3, 1, PRIMITIVES, (7, 9)),
    (5, 2, PRIMITIVES[::-1], (5, 6)),
    (3, 2, ("sep_conv_3x3",), (8, 8)),
]


def pair(
    layers: int = 3,
    nodes: int = 2,
    candidates: tuple[str, ...] = FEW,
    *,
    image_channels: int = 3,
    stem_multiplier: int = 3,
) -> tuple[Supernet, _darts.Network]:
    """Ours and the plain one, in one random state."""
    options = {"image_channels": image_channels, "stem_multiplier": stem_multiplier}
    net = tiny_supernet(layers=layers, nodes=nodes, candidates=candidates, **options)
    plain = _darts.supernet(4, layers, nodes, candidates, classes=CLASSES, **options)
    plain.load_state_dict(without_alphas(net.state_dict()), strict=True)
    return net, plain


def assert_agree(net: Supernet, plain: _darts.Network, x: Tensor) -> None:
    """Logits, gradients of everything by name, and buffers afterwards."""
    alphas = [net.get_parameter(name).detach().clone().requires_grad_() for name in ALPHAS]
    logits, truth = net(x), plain(x, *(a.softmax(-1) for a in alphas))
    assert_close(logits, truth, "logits")
    loss, true_loss = (
        torch.nn.functional.cross_entropy(out, labels(len(x))) for out in (logits, truth)
    )
    expected = gradients(plain, true_loss)
    of_alphas = torch.autograd.grad(true_loss, alphas, materialize_grads=True)
    expected |= dict(zip(ALPHAS, of_alphas, strict=True))
    assert_same(gradients(net, loss), expected, 1e-9)
    assert_same(buffers(net), buffers(plain))


@pytest.mark.parametrize(("layers", "nodes", "candidates", "size"), SHAPES)
def test_agrees_with_modules(
    layers: int, nodes: int, candidates: tuple[str, ...], size: tuple[int, int]
) -> None:
    net, plain = pair(layers, nodes, candidates)
    assert_agree(net, plain, images(4, 3, *size))
    assert_agree(net.eval(), plain.eval(), images(3, 3, *size, seed=1))


def test_agrees_with_modules_on_other_images_and_stems() -> None:
    net, plain = pair(image_channels=1, stem_multiplier=2)
    assert_agree(net, plain, images(4, 1, 8, 8))


@pytest.mark.parametrize(("layers", "nodes"), [(1, 2), (3, 4), (5, 1)])
def test_names_are_the_public_ones(layers: int, nodes: int) -> None:
    net, plain = pair(layers, nodes, PRIMITIVES)
    state = net.state_dict()
    assert_identical(without_alphas(state), plain.state_dict())
    assert set(state) - set(plain.state_dict()) == set(ALPHAS)
    assert f"cells.{layers - 1}._ops.0._ops.4.op.1.weight" in state
    ours = [name for name, _ in net.named_parameters() if name not in ALPHAS]
    assert ours == [name for name, _ in plain.named_parameters()]
    assert net.alphas_normal.shape == net.alphas_reduce.shape == (len(edges(nodes)), 8)


def test_plain_state_dict_loads_and_leaves_alphas() -> None:
    net, plain = pair()
    other = tiny_supernet(seed=1)
    alphas = [a.detach().clone() for a in other.arch_parameters()]
    state = plain.state_dict()
    other.load_state_dict(state, strict=True)
    assert set(state) == set(plain.state_dict())  # nothing was added to the caller's dict
    assert_identical(without_alphas(other.state_dict()), plain.state_dict())
    for before, after in zip(alphas, other.arch_parameters(), strict=True):
        assert torch.equal(before, after)
    other.load_state_dict(net.state_dict(), strict=True)
    assert_identical(other.state_dict(), net.state_dict())


def test_wrong_state_dicts() -> None:
    state = tiny_supernet().state_dict()
    del state["stem.0.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*stem\.0\.weight"):
        tiny_supernet().load_state_dict(state)
    with pytest.raises(RuntimeError, match="size mismatch"):
        tiny_supernet().load_state_dict(tiny_supernet(nodes=1).state_dict(), strict=False)


def test_training_steps() -> None:
    net, plain = pair()
    alphas = [net.get_parameter(name).detach().clone().requires_grad_() for name in ALPHAS]
    optimisers = [
        torch.optim.SGD(parameters, 0.05, momentum=0.9)
        for parameters in (net.parameters(), [*plain.parameters(), *alphas])
    ]
    for step in range(3):
        x = images(3 + step, 3, 8, 8, seed=step)
        outs = (net(x), plain(x, *(a.softmax(-1) for a in alphas)))
        for out, optimiser in zip(outs, optimisers, strict=True):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(out, labels(len(x))).backward()
            optimiser.step()
    expected = plain.state_dict() | dict(zip(ALPHAS, (a.detach() for a in alphas), strict=True))
    assert_same(net.state_dict(), expected, 1e-9)


def test_mixing_weights_and_parameter_groups() -> None:
    net = tiny_supernet()
    normal, reduce = net.mixing_weights()
    assert_close(normal[0], net.alphas_normal.exp() / net.alphas_normal.exp().sum(-1, keepdim=True))
    assert_close(reduce[0], net.alphas_reduce.exp() / net.alphas_reduce.exp().sum(-1, keepdim=True))
    groups = [*net.weight_parameters(), *net.arch_parameters()]
    assert {id(p) for p in groups} == {id(p) for p in net.parameters()}
    assert len(groups) == len(list(net.parameters()))
    assert all(p.requires_grad for p in groups)


@pytest.mark.parametrize("candidates", [FEW, PRIMITIVES, PRIMITIVES[::-1]])
def test_genotype_names_this_networks_candidates(candidates: tuple[str, ...]) -> None:
    net = tiny_supernet(candidates=candidates, nodes=1)
    skip, conv = candidates.index("skip_connect"), candidates.index("sep_conv_3x3")
    with torch.no_grad():
        net.alphas_normal[:, skip] += 100
        net.alphas_reduce[:, conv] += 100
    genotype = net.genotype()
    assert genotype.normal == (("skip_connect", 0), ("skip_connect", 1))
    assert genotype.reduce == (("sep_conv_3x3", 0), ("sep_conv_3x3", 1))


def test_genotype_of_one_client_within_a_budget() -> None:
    net = tiny_supernet(clients=2)
    costs = cost_table(net.shape)
    budget = costs.fixed + 0.3 * float(costs.cells.sum())
    for client in range(2):
        alphas = tuple(a[client] for a in net.arch_parameters())
        assert net.genotype(costs, client=client) == discretize(alphas, costs)
        assert net.genotype(costs, budget, client) == discretize(alphas, costs, budget)
    assert net.genotype(client=0) != net.genotype(client=1)


def test_genotype_refuses_costs_of_other_candidates() -> None:
    net = tiny_supernet()
    costs = cost_table(net.shape)
    mixed_up = CostTable("macs", costs.cells, 0.0, DARTSCells(2, FEW[::-1]))
    with pytest.raises(ValueError, match="costs are of"):
        net.genotype(mixed_up)
    with pytest.raises(ConfigError, match="a budget needs a cost table"):
        net.genotype(budget=1.0)


@pytest.mark.parametrize(
    ("clients", "shape", "expected"),
    [
        (None, (3, 8, 8), r"\(N, 3, H, W\)"),
        (None, (2, 1, 8, 8), r"\(N, 3, H, W\)"),
        (2, (2, 3, 8, 8), r"\(2, N, 3, H, W\)"),
        (2, (3, 2, 3, 8, 8), r"\(2, N, 3, H, W\)"),
    ],
)
def test_wrong_images(clients: int | None, shape: tuple[int, ...], expected: str) -> None:
    with pytest.raises(ValueError, match=f"x has shape .* expected {expected}"):
        tiny_supernet(clients=clients)(images(*shape))


def test_wrong_arguments() -> None:
    with pytest.raises(ConfigError, match="layers must be at least 1"):
        Supernet(4, layers=0)
    with pytest.raises(ConfigError, match="expected different names"):
        Supernet(4, candidates=("none", "none"))
    with pytest.raises(ValueError, match="unknown primitive 'conv'"):
        Supernet(4, candidates=("conv",))
