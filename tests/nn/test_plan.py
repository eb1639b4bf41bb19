"""`FlatLayout`, and what `NetworkPlan` does with flat rows outside the forward pass."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from metadnas_ext.nn import NetworkPlan, supernet_plan
from metadnas_ext.nn.layout import FlatLayout
from metadnas_ext.space import PRIMITIVES, NetworkShape

from . import _darts
from ._helpers import CLASSES, assert_close, images

SHAPES = {"a": (2, 3), "b": (), "c": (4,), "d": (2, 1, 2, 2)}
SIZE = 6 + 1 + 4 + 8


def layout() -> FlatLayout:
    return FlatLayout(SHAPES.items())


def plan(layers: int = 3) -> NetworkPlan:
    return supernet_plan(NetworkShape(4, layers, 2, CLASSES, image_size=8))


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_views_share_memory_in_order(lead: tuple[int, ...]) -> None:
    flat = torch.arange(math.prod(lead) * SIZE, dtype=torch.float64).view(*lead, SIZE)
    views = layout().views(flat)
    assert {name: view.shape for name, view in views.items()} == {
        name: (*lead, *shape) for name, shape in SHAPES.items()
    }
    joined = torch.cat([view.reshape(*lead, -1) for view in views.values()], -1)
    assert torch.equal(joined, flat)
    views["d"].fill_(-1)
    assert (flat[..., -8:] == -1).all()
    assert (flat[..., :-8] >= 0).all()


@pytest.mark.parametrize("clients", [None, 1, 3])
def test_flatten_inverts_views(clients: int | None) -> None:
    flat = images(SIZE) if clients is None else images(clients, SIZE)
    leaf = flat.clone().requires_grad_()
    again = layout().flatten(layout().views(leaf), clients)
    assert torch.equal(again, flat)
    (grad,) = torch.autograd.grad((again * flat).sum(), leaf)
    assert torch.equal(grad, flat)


def test_flatten_takes_other_orders_and_more_names() -> None:
    flat = images(SIZE)
    views = layout().views(flat)
    shuffled = {"more": images(3), **dict(reversed(views.items()))}
    assert torch.equal(layout().flatten(shuffled), flat)


def test_slots() -> None:
    slots = layout().slots
    assert [(s.name, s.offset, s.end) for s in slots.values()] == [
        ("a", 0, 6),
        ("b", 6, 7),
        ("c", 7, 11),
        ("d", 11, 19),
    ]
    assert layout().size == SIZE


def test_index_of_takes_from_a_row_of_the_other() -> None:
    mine = FlatLayout([("y", (2, 1, 2, 2)), ("x", (2, 3))])
    row = images(SIZE)
    index = mine.index_of({"x": "a", "y": "d", "unused": "c"}, layout())
    found = mine.views(row[index])
    assert torch.equal(found["x"], layout().views(row)["a"])
    assert torch.equal(found["y"], layout().views(row)["d"])
    identity = layout().index_of({name: name for name in SHAPES}, layout())
    assert torch.equal(identity, torch.arange(SIZE))


def test_empty_layout() -> None:
    empty = FlatLayout([])
    assert empty.size == 0
    assert empty.views(torch.zeros(2, 0)) == {}
    assert empty.flatten({}).shape == (0,)
    assert empty.flatten({}, 2).shape == (2, 0)
    assert empty.index_of({}, layout()).dtype == torch.int64


def test_layout_errors() -> None:
    with pytest.raises(ValueError, match="the name 'a' occurs twice"):
        FlatLayout([("a", (1,)), ("a", (2,))])
    with pytest.raises(ValueError, match="has 18 columns, expected 19"):
        layout().views(torch.zeros(2, 18))
    with pytest.raises(ValueError, match=r"x has shape \(3, 2\), but a has \(2, 3\)"):
        FlatLayout([("x", (3, 2))]).index_of({"x": "a"}, layout())
    with pytest.raises(KeyError):
        layout().flatten({"a": torch.zeros(2, 3)})


def test_initial_parameters_are_as_torchs_layers() -> None:
    torch.manual_seed(0)
    views = plan().parameters.views(plan().initial(2, torch.Generator().manual_seed(0)))
    fresh = dict(_darts.supernet(4, 3, 2, PRIMITIVES, classes=CLASSES).named_parameters())
    assert views.keys() == fresh.keys()
    scaled = []
    for name, view in views.items():
        assert torch.equal(view[0], view[1]), f"{name}: clients start apart"
        if name.startswith("stem.1."):
            assert torch.equal(view[0].double(), fresh[name])
            continue
        weight = fresh[name.replace("bias", "weight")]
        # Kaiming-uniform with a = sqrt(5): 1 / sqrt(fan-in), rounded to float32.
        limit = weight[0].numel() ** -0.5 * (1 + 1e-6)
        assert float(fresh[name].detach().abs().max()) <= limit
        assert float(view.abs().max()) <= limit, name
        scaled.append(view[0].flatten() / limit)
    uniform = torch.cat(scaled)  # over [-1, 1]: mean 0, variance 1 / 3
    assert uniform.max() > 0.999
    assert uniform.min() < -0.999
    error = len(uniform) ** -0.5
    assert abs(float(uniform.mean())) < 4 * error
    assert abs(float(uniform.square().mean()) - 1 / 3) < 4 * error


def test_initial_follows_its_generator() -> None:
    rows = [plan().initial(1, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_initial_rows_are_apart() -> None:
    for rows in (plan().initial(2), plan().initial_running(2)):
        rows[0] = 7
        assert not (rows[1] == 7).any()


def test_initial_running() -> None:
    for name, view in plan().running.views(plan().initial_running(3)).items():
        assert torch.equal(view, torch.full_like(view, name.endswith("running_var")))


@pytest.mark.parametrize("momentum", [0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_update_running_is_batch_norms(momentum: float, dtype: torch.dtype) -> None:
    single = plan(layers=1)  # no reduction: every batch norm sees 8 x 8 pixels
    counts = [3, 1, 0]
    running = images(3, single.running.size).abs().to(dtype)
    stats, expected = torch.zeros_like(running), running.clone()
    seen, wanted = single.running.views(stats), single.running.views(expected)
    for seed, name in enumerate(n for n in seen if n.endswith("running_mean")):
        variance = name.replace("mean", "var")
        for g, count in enumerate(counts):
            if count:
                z = images(count, seen[name].shape[1], 8, 8, seed=seed).to(dtype)
                seen[variance][g], seen[name][g] = torch.var_mean(z, (0, 2, 3), correction=0)
                _batch_norm(z, wanted[name][g], wanted[variance][g], momentum)
    single.update_running(running, stats, torch.tensor(counts), momentum)
    assert_close(running, expected, tolerance=1e-14 if dtype == torch.float64 else 1e-6)
    assert torch.equal(running[2], expected[2])


def _batch_norm(z: Tensor, mean: Tensor, var: Tensor, momentum: float) -> None:
    """torch's update of running statistics, in place."""
    norm = nn.BatchNorm2d(z.shape[1], momentum=momentum, affine=False)
    norm.running_mean, norm.running_var = mean.clone(), var.clone()
    norm(z)
    mean.copy_(norm.running_mean)
    var.copy_(norm.running_var)


@pytest.mark.parametrize(("size", "pixels"), [(None, 64), ((5, 9), 45), ((1, 1), 1)])
def test_unbiased_variances_of_images_of_another_size(
    size: tuple[int, int] | None, pixels: int
) -> None:
    single = plan(layers=1)
    stats = torch.ones(1, single.running.size, dtype=torch.float64)
    unbiased = single.unbiased(stats, torch.tensor([2]), size=size)
    for name, view in single.running.views(unbiased).items():
        n = 2 * pixels
        factor = n / (n - 1) if name.endswith("running_var") else 1.0
        assert_close(view, torch.full_like(view, factor), name, 1e-15)
