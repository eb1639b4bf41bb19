"""Networks with the user's own primitives beside fused candidates, against plain modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from metadnas_ext.nn import DerivedNet, Supernet, supernet_plan
from metadnas_ext.nn.functional import cross_entropy
from metadnas_ext.nn.stages import FusedCell
from metadnas_ext.space import Genotype, NetworkShape, cost_table, genotype_cost

from .._primitives import FACTORIES
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
    tiny_supernet,
    without_alphas,
)
from .test_derived import count_macs

OWN = ("squeeze_excite", "none", "sep_conv_3x3", "conv_1x3_3x1", "avg_pool_3x3", "norm_only")
UNFUSED = ("norm_only", "squeeze_excite")
GENOTYPE = Genotype.of(
    normal=(("squeeze_excite", 1), ("sep_conv_3x3", 0), ("norm_only", 2), ("conv_1x3_3x1", 1)),
    reduce=(("conv_1x3_3x1", 1), ("squeeze_excite", 0), ("norm_only", 0), ("avg_pool_3x3", 2)),
)
RAGGED = (4, 1, 0, 3)


@pytest.fixture(autouse=True)
def _own_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain networks know the same factories."""
    for name, factory in FACTORIES.items():
        monkeypatch.setitem(_darts.OPS, name, factory)


def without_constants(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Constants stay in the module's definition: they are in no state of ours."""
    return {name: t for name, t in state.items() if not name.endswith("halves")}


@pytest.mark.parametrize(
    ("candidates", "layers", "size"),
    [
        (OWN, 3, (8, 8)),
        (OWN, 2, (7, 9)),
        (UNFUSED, 3, (8, 6)),
        (("sep_conv_3x3", OWN[0]), 1, (6, 6)),
    ],
)
def test_supernet_agrees_with_modules(
    candidates: tuple[str, ...], layers: int, size: tuple[int, int]
) -> None:
    """Logits, gradients of everything by name, and buffers afterwards, training and eval."""
    net = tiny_supernet(layers=layers, candidates=candidates)
    plain = _darts.supernet(4, layers, 2, candidates, classes=CLASSES)
    missing, unexpected = plain.load_state_dict(without_alphas(net.state_dict()), strict=False)
    assert not unexpected
    assert all(name.endswith("halves") for name in missing)
    for training in (True, False):
        x, y = images(4, 3, *size, seed=int(training)), labels(4)
        alphas = [net.get_parameter(name).detach().clone().requires_grad_() for name in ALPHAS]
        outs = net.train(training)(x), plain.train(training)(x, *(a.softmax(-1) for a in alphas))
        assert_close(outs[0], outs[1], "logits")
        loss, truth = (nn.functional.cross_entropy(out, y) for out in outs)
        expected = gradients(plain, truth)
        of_alphas = torch.autograd.grad(truth, alphas, materialize_grads=True)
        expected |= dict(zip(ALPHAS, of_alphas, strict=True))
        assert_same(gradients(net, loss), expected, 1e-9)
        assert_same(buffers(net), without_constants(buffers(plain)))


def test_derived_network_agrees_with_modules() -> None:
    shape = NetworkShape(4, 3, 2, CLASSES, image_size=8, candidates=OWN)
    net = DerivedNet(shape, GENOTYPE).double()
    randomise(net)
    plain = _darts.evaluation_network(GENOTYPE.normal, GENOTYPE.reduce, 4, 3, classes=CLASSES)
    plain.load_state_dict(net.state_dict(), strict=False)
    for training in (True, False):
        x, y = images(4, 3, 7, 9, seed=int(training)), labels(4)
        outs = [m.train(training)(x) for m in (net, plain)]
        assert_close(outs[0], outs[1], "logits")
        losses = [nn.functional.cross_entropy(out, y) for out in outs]
        assert_same(gradients(net, losses[0]), gradients(plain, losses[1]), 1e-9)
        assert_same(buffers(net), without_constants(buffers(plain)))
    assert genotype_cost(cost_table(shape, "params"), GENOTYPE) == sum(
        p.numel() for p in plain.parameters()
    )
    gates = 4**2 + 8**2 + 16**2  # products by hand: one squeeze_excite a cell
    counted = count_macs(plain.eval(), 8) + gates
    assert genotype_cost(cost_table(shape), GENOTYPE) == counted


def test_derive_equals_the_one_hot_supernet() -> None:
    supernet = tiny_supernet(candidates=OWN)
    net = supernet.derive(GENOTYPE)
    places = [(source, node) for node in range(2) for source in range(2 + node)]
    weights = []
    for pairs in (GENOTYPE.normal, GENOTYPE.reduce):
        one_hot = torch.zeros(len(places), len(OWN), dtype=torch.float64)
        for i, (name, source) in enumerate(pairs):
            one_hot[places.index((source, i // 2)), OWN.index(name)] = 1
        weights.append(one_hot[None])
    x = images(4, 3, 8, 8)
    expected = supernet.plan(
        supernet.flat(),
        tuple(weights),
        x.permute(0, 2, 3, 1)[None],
        running=supernet.flat_running(),
    )
    assert_close(net.eval()(x), expected.logits[0], "logits")


def test_fused_candidates_alone_stay_one_operator() -> None:
    fused = NetworkShape(4, 3, 2, CLASSES, image_size=8, candidates=("none", "sep_conv_3x3"))
    assert all(isinstance(stage, FusedCell) for stage in supernet_plan(fused).stages)
    net = tiny_supernet(candidates=OWN)
    pairs = (("sep_conv_3x3", 0), ("avg_pool_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 2))
    derived = net.derive(Genotype.of(pairs, pairs))
    assert all(isinstance(stage, FusedCell) for stage in derived.plan.stages)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_ragged_clients_equal_each_alone(dtype: torch.dtype, training: bool) -> None:
    """Bit for bit: losses, gradients, statistics; whatever lies where images do not count."""
    plan = supernet_plan(NetworkShape(4, 3, 2, CLASSES, image_size=8, candidates=OWN))
    theta = (0.5 * images(4, plan.parameters.size)).to(dtype)
    running = (images(4, plan.running.size, seed=1).abs() + 0.5).to(dtype)
    weights = [mixture(4, 5, len(OWN), seed=s).detach().to(dtype) for s in (2, 3)]
    x, y = images(4, 4, 8, 8, 3, seed=4).to(dtype), labels(4, 4)
    for g, count in enumerate(RAGGED):
        x[g, count:] = 1e10

    def outcome(rows: slice, images_each: int, counts: Tensor | None) -> dict[str, Tensor]:
        leaves = [t[rows].clone().requires_grad_() for t in (theta, *weights)]
        own = x[rows, :images_each]
        out = plan(
            leaves[0],
            (leaves[1], leaves[2]),
            own,
            running=None if training else running[rows],
            counts=counts,
        )
        losses = cross_entropy(out.logits, y[rows, :images_each], counts)
        grads = torch.autograd.grad(losses.sum(), leaves)
        updated = running[rows].clone()
        if training:
            sizes = torch.full((len(own),), images_each) if counts is None else counts
            plan.update_running(updated, out.stats, sizes)
        names = ("theta", "normal", "reduce")
        return {
            "losses": losses.detach(),
            "running": updated,
            **dict(zip(names, grads, strict=True)),
        }

    together = outcome(slice(0, 4), 4, torch.tensor(RAGGED))
    for g, count in enumerate(RAGGED):
        if count:
            assert_identical(alone(together, g), alone(outcome(slice(g, g + 1), count, None), 0))
        else:
            assert not any(together[name][g].any() for name in ("theta", "normal", "reduce"))
            assert torch.equal(together["running"][g], running[g])


def test_first_values_are_the_modules_own() -> None:
    """PReLU starts at 1/4, which no rule for convolutions gives."""
    plan = supernet_plan(NetworkShape(4, 1, 1, CLASSES, image_size=8, candidates=OWN))
    views = plan.parameters.views(plan.initial(1, torch.Generator().manual_seed(0))[0])
    assert torch.equal(views["cells.0._ops.0._ops.3.0.weight"], torch.full((4,), 0.25))
    gates = [view for name, view in views.items() if name.endswith("gate")]
    assert not torch.equal(gates[0], gates[1])


def test_deepcopy_and_half_precision() -> None:
    net = tiny_supernet(candidates=OWN).float()
    x = images(2, 3, 8, 8).float()
    twin = copy.deepcopy(net)
    assert torch.equal(net(x), twin(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(net.eval()(x).float(), twin.eval()(x).float(), tolerance=0.1)


def test_a_primitive_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="unknown primitive 'nobodys'"):
        Supernet(4, candidates=("none", "nobodys"))
