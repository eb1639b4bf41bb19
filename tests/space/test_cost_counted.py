"""Costs against the DARTS network in plain modules, written for these tests alone and counted by
hooks while it runs."""

import pytest
import torch
from torch import nn

from metadnas_ext.space.cost import cost_table, genotype_cost
from metadnas_ext.space.darts import NetworkShape, edges
from metadnas_ext.space.genotype import DARTS_V1, DARTS_V2
from metadnas_ext.space.primitives import PRIMITIVES


def _conv(c_in, c_out, kernel, stride=1, dilation=1, groups=1):
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(c_in, c_out, kernel, stride, padding, dilation, groups, bias=False)


class FactorizedReduce(nn.Module):
    def __init__(self, c_in, c_out, affine):
        super().__init__()
        self.even = _conv(c_in, c_out // 2, 1, 2)
        self.odd = _conv(c_in, c_out // 2, 1, 2)
        self.bn = nn.BatchNorm2d(c_out, affine=affine)

    def forward(self, x):
        x = torch.relu(x)
        shifted = nn.functional.pad(x[:, :, 1:, 1:], (0, 1, 0, 1))
        return self.bn(torch.cat([self.even(x), self.odd(shifted)], 1))


def _separable(c, kernel, stride, dilation, affine):
    return [
        nn.ReLU(),
        _conv(c, c, kernel, stride, dilation, groups=c),
        _conv(c, c, 1),
        nn.BatchNorm2d(c, affine=affine),
    ]


def operation(name, c, stride, affine):
    if name == "none":
        return nn.AvgPool2d(1, stride)  # of the right size and free of charge
    if name == "max_pool_3x3":
        return nn.MaxPool2d(3, stride, 1)
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride, 1)
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(c, c, affine)
    kernel = int(name[-1])
    if name.startswith("dil"):
        return nn.Sequential(*_separable(c, kernel, stride, 2, affine))
    return nn.Sequential(
        *_separable(c, kernel, stride, 1, affine), *_separable(c, kernel, 1, 1, affine)
    )


class Cell(nn.Module):
    """`wiring[node]` lists (name, source) of everything that the node adds up."""

    def __init__(self, wiring, before_last, last, c, reduction, reduction_prev, affine):
        super().__init__()

        def unify(c_in, reduce):
            if reduce:
                return FactorizedReduce(c_in, c, affine)
            return nn.Sequential(nn.ReLU(), _conv(c_in, c, 1), nn.BatchNorm2d(c, affine=affine))

        self.unify = nn.ModuleList([unify(before_last, reduction_prev), unify(last, False)])
        self.wiring = wiring
        self.operations = nn.ModuleList(
            nn.ModuleList(
                operation(name, c, 2 if reduction and source < 2 else 1, affine)
                for name, source in node
            )
            for node in wiring
        )

    def forward(self, before_last, last):
        states = [self.unify[0](before_last), self.unify[1](last)]
        for node, operations in zip(self.wiring, self.operations, strict=True):
            pairs = zip(node, operations, strict=True)
            states.append(sum(op(states[source]) for (_, source), op in pairs))
        return torch.cat(states[2:], 1)


class Network(nn.Module):
    def __init__(self, normal, reduce, c, layers, classes, image_channels=3, affine=False):
        super().__init__()
        self.stem = nn.Sequential(_conv(image_channels, 3 * c, 3), nn.BatchNorm2d(3 * c))
        before_last = last = 3 * c
        self.cells = nn.ModuleList()
        reduction_prev = False
        for i in range(layers):
            reduction = i > 0 and i in (layers // 3, 2 * layers // 3)
            c = 2 * c if reduction else c
            wiring = reduce if reduction else normal
            self.cells.append(Cell(wiring, before_last, last, c, reduction, reduction_prev, affine))
            before_last, last, reduction_prev = last, len(wiring) * c, reduction
        self.head = nn.Linear(last, classes)

    def forward(self, x):
        before_last = last = self.stem(x)
        for cell in self.cells:
            before_last, last = last, cell(before_last, last)
        return self.head(last.mean((2, 3)))


def macs(network, image_size, image_channels=3):
    """Multiply-accumulates of all convolutions and linear layers for one image, by hooks."""
    counted = []

    def count(module, _, output):
        outputs = output[0].numel()
        counted.append(outputs * module.weight[0].numel())

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        network.eval()(torch.zeros(1, image_channels, image_size, image_size))
    return sum(counted)


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def wiring(pairs):
    return [pairs[i : i + 2] for i in range(0, len(pairs), 2)]


def derived(genotype, c, layers, affine=False):
    return Network(wiring(genotype.normal), wiring(genotype.reduce), c, layers, 10, affine=affine)


def test_darts_v2_on_cifar_has_its_published_size():
    # 3.3 million parameters: Liu et al. 2019, table 1. The plain network must agree, or it is no
    # yardstick for ours; the MACs are then those it counts.
    network = derived(DARTS_V2, 36, 20, affine=True)
    assert round(parameters(network) / 1e6, 2) == 3.35
    assert round(macs(network, 32) / 1e6) == 528
    table = cost_table(NetworkShape(channels=36, layers=20))
    assert round(genotype_cost(table, DARTS_V2) / 1e6) == 528


@pytest.mark.parametrize("genotype", [DARTS_V1, DARTS_V2])
@pytest.mark.parametrize(("layers", "size"), [(1, 8), (2, 8), (3, 32), (4, 9), (8, 15)])
def test_derived_network(genotype, layers, size):
    network = derived(genotype, 4, layers)
    shape = NetworkShape(channels=4, layers=layers, image_size=size)
    assert genotype_cost(cost_table(shape), genotype) == macs(network, size)
    assert genotype_cost(cost_table(shape, "params"), genotype) == parameters(network)


@pytest.mark.parametrize(("nodes", "layers", "size"), [(4, 8, 32), (2, 5, 28), (1, 3, 7)])
def test_supernet(nodes, layers, size):
    everything = [
        [(name, e.source) for e in edges(nodes) if e.target_node == node for name in PRIMITIVES]
        for node in range(nodes)
    ]
    network = Network(everything, everything, 6, layers, 7, image_channels=1)
    shape = NetworkShape(6, layers, nodes, classes=7, image_size=size, image_channels=1)
    for unit, count in (
        ("macs", macs(network, size, image_channels=1)),
        ("params", parameters(network)),
    ):
        table = cost_table(shape, unit)
        assert table.fixed + float(table.cells.sum()) == count


def test_stem_width_and_affine_batch_norms():
    shape = NetworkShape(channels=4, layers=3, stem_multiplier=1)
    wider = NetworkShape(channels=4, layers=3, stem_multiplier=2)
    # The stem's 4 more channels, its batch norm, and the 1x1 convolutions that read them: two of
    # the first cell, one of the second (a reduction cell with 8 channels).
    grown = 4 * 27 + 2 * 4 + 4 * (4 + 4) + 4 * 8
    params, affine = cost_table(shape, "params"), cost_table(shape, "params", affine=True)
    assert cost_table(wider, "params").fixed - params.fixed == grown
    # Both preprocessings of cells with 4, 8 and 16 channels; scale and shift.
    assert affine.fixed - params.fixed == 2 * 2 * (4 + 8 + 16)
    sep = PRIMITIVES.index("sep_conv_3x3")
    assert affine.cells[0, 0, sep] - params.cells[0, 0, sep] == 2 * 2 * 4
