"""`DerivedNet` against the plain evaluation network, the one-hot supernet, and the cost tables."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metadnas_ext.nn import DerivedNet, Supernet, inherit_indices
from metadnas_ext.space import (
    DARTS_V1,
    DARTS_V2,
    PRIMITIVES,
    Genotype,
    NetworkShape,
    cost_table,
    genotype_cost,
)

from . import _darts
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
    randomise,
    tiny_supernet,
)

# Sources out of order, all candidates but `none` once.
MIXED = Genotype.of(
    normal=(("sep_conv_5x5", 1), ("skip_connect", 0), ("max_pool_3x3", 2), ("dil_conv_3x3", 1)),
    reduce=(("skip_connect", 1), ("avg_pool_3x3", 0), ("dil_conv_5x5", 2), ("sep_conv_3x3", 0)),
)


def plain_network(net: DerivedNet) -> _darts.Network:
    """The plain network in the state of `net`."""
    genotype, shape = net.genotype, net.shape
    plain = _darts.evaluation_network(
        genotype.normal, genotype.reduce, shape.channels, shape.layers, classes=shape.classes
    )
    plain.load_state_dict(net.state_dict(), strict=True)
    return plain


def derived(
    genotype: Genotype = MIXED, layers: int = 3, channels: int = 4, image_size: int = 8
) -> DerivedNet:
    shape = NetworkShape(channels, layers, genotype.nodes, CLASSES, image_size=image_size)
    net = DerivedNet(shape, genotype).double()
    randomise(net)
    return net


def kept(genotype: Genotype, reduction: bool) -> list[tuple[int, int]]:
    """Edge and candidate in the supernet of each pair of a cell, counted from the definition."""
    pairs = genotype.reduce if reduction else genotype.normal
    places = [(source, node) for node in range(genotype.nodes) for source in range(2 + node)]
    return [
        (places.index((source, i // 2)), PRIMITIVES.index(name))
        for i, (name, source) in enumerate(pairs)
    ]


def one_hot(genotype: Genotype, reduction: bool) -> Tensor:
    """Mixing weights of a supernet cell that leave only the genotype's edges and candidates."""
    weights = torch.zeros(genotype.nodes * (genotype.nodes + 3) // 2, len(PRIMITIVES))
    for edge, candidate in kept(genotype, reduction):
        weights[edge, candidate] = 1
    return weights.double()


def name_in_supernet(name: str, net: DerivedNet) -> str:
    """Where a tensor of the derived network comes from."""
    parts = name.split(".")
    if parts[0] != "cells" or parts[2] != "_ops":
        return name
    cell = net.shape.cells()[int(parts[1])]
    edge, candidate = kept(net.genotype, cell.reduction)[int(parts[3])]
    return ".".join([*parts[:3], str(edge), "_ops", str(candidate), *parts[4:]])


@pytest.mark.parametrize(
    ("genotype", "layers", "size"),
    [(MIXED, 1, (8, 8)), (MIXED, 3, (7, 9)), (MIXED, 5, (8, 6)), (DARTS_V2, 3, (8, 8))],
)
def test_agrees_with_modules(genotype: Genotype, layers: int, size: tuple[int, int]) -> None:
    net = derived(genotype, layers)
    plain = plain_network(net)
    for training in (True, False):
        x, y = images(4, 3, *size, seed=int(training)), labels(4)
        outs = [m.train(training)(x) for m in (net, plain)]
        assert_close(outs[0], outs[1], "logits")
        losses = [nn.functional.cross_entropy(out, y) for out in outs]
        assert_same(gradients(net, losses[0]), gradients(plain, losses[1]), 1e-9)
        assert_same(buffers(net), buffers(plain))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("genotype", [MIXED, DARTS_V1])
def test_derive_equals_the_one_hot_supernet(genotype: Genotype, training: bool) -> None:
    supernet = tiny_supernet(nodes=genotype.nodes, candidates=PRIMITIVES).train(training)
    net = supernet.derive(genotype).train(training)
    plain = _darts.supernet(4, 3, genotype.nodes, PRIMITIVES, classes=CLASSES).train(training)
    plain.load_state_dict(supernet.state_dict(), strict=False)
    x, y = images(4, 3, 8, 8), labels(4)
    out, truth = net(x), plain(x, one_hot(genotype, False), one_hot(genotype, True))
    assert_close(out, truth, "logits")
    grads = gradients(net, nn.functional.cross_entropy(out, y))
    expected = gradients(plain, nn.functional.cross_entropy(truth, y))
    names = {name: name_in_supernet(name, net) for name in net.state_dict()}
    assert_same(grads, {name: expected.pop(names[name]) for name in grads}, 1e-9)
    assert all(not grad.any() for grad in expected.values())
    after = buffers(plain)
    assert_same(buffers(net), {name: after[names[name]] for name in buffers(net)})


@pytest.mark.parametrize("clients", [None, 3])
def test_derive_inherits_by_name(clients: int | None) -> None:
    supernet = tiny_supernet(candidates=PRIMITIVES, clients=clients)
    client = 0 if clients is None else 2
    net = supernet.derive(MIXED, client)
    state = supernet.state_dict() if clients is None else alone(supernet.state_dict(), client)
    floats = {n: t for n, t in net.state_dict().items() if t.is_floating_point()}
    assert_identical(floats, {name: state[name_in_supernet(name, net)] for name in floats})
    parameters, running = inherit_indices(supernet.plan, net.plan, MIXED)
    assert torch.equal(supernet.flat()[client, parameters], net.flat()[0])
    assert torch.equal(supernet.flat_running()[client, running], net.flat_running()[0])
    randomise(net, 1)  # a copy: the supernet keeps its own
    now = supernet.state_dict() if clients is None else alone(supernet.state_dict(), client)
    assert_identical(now, state)


def test_derive_keeps_the_dtype() -> None:
    for dtype in (torch.float32, torch.float64):
        supernet = tiny_supernet(candidates=PRIMITIVES).to(dtype)
        assert supernet.derive(MIXED)(images().to(dtype)).dtype == dtype


def test_load_flat() -> None:
    one, other = derived(), derived()
    randomise(other, 1)
    other.load_flat(one.flat(), one.flat_running())
    assert_identical(dict(other.named_parameters()), dict(one.named_parameters()))
    assert torch.equal(other.flat_running(), one.flat_running())


def test_published_genotype_and_public_names() -> None:
    net = DerivedNet(NetworkShape(channels=4, layers=8, image_size=8), DARTS_V2)
    state = net.state_dict()
    assert state["cells.0._ops.1.op.1.weight"].shape == (4, 1, 3, 3)
    assert state["cells.2.preprocess1.op.1.weight"].shape == (8, 16, 1, 1)
    assert state["cells.3.preprocess0.conv_1.weight"].shape == (4, 16, 1, 1)
    assert {"stem.0.weight", "stem.1.running_var", "classifier.bias"} < set(state)
    assert not any("alphas" in name for name in state)
    plain = plain_network(net)
    assert [n for n, _ in net.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert net(images(2, 3, 8, 8).float()).shape == (2, 10)


@pytest.mark.parametrize("genotype", [MIXED, DARTS_V1, DARTS_V2])
@pytest.mark.parametrize(("layers", "image_size"), [(1, 8), (3, 7), (5, 8)])
def test_costs_are_those_of_the_built_network(
    genotype: Genotype, layers: int, image_size: int
) -> None:
    net = derived(genotype, layers, image_size=image_size)
    parameters = sum(p.numel() for p in net.parameters())
    assert genotype_cost(cost_table(net.shape, "params"), genotype) == parameters
    macs = count_macs(plain_network(net).eval(), image_size)
    assert genotype_cost(cost_table(net.shape), genotype) == macs


def count_macs(network: nn.Module, image_size: int) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image, by hooks."""
    counted: list[int] = []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(
                lambda m, _, out: counted.append(out.numel() * m.weight[0].numel())
            )
    network(images(1, 3, image_size, image_size))
    return sum(counted)


def test_misfits() -> None:
    with pytest.raises(ValueError, match="cells have 4 nodes, the genotype 2"):
        DerivedNet(NetworkShape(4, 3), MIXED)
    with pytest.raises(ValueError, match="cells have 2 nodes, the genotype 4"):
        Supernet(4, layers=3, nodes=2).derive(DARTS_V2)
    with pytest.raises(ValueError, match="no candidate 'sep_conv_5x5'"):
        tiny_supernet(candidates=("skip_connect", "max_pool_3x3")).derive(MIXED)
    with pytest.raises(ValueError, match=r"x has shape .* expected \(N, 3, H, W\)"):
        derived()(images(3, 8, 8))
