"""Exported programs and the plain module give the fused network's logits."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import metadnas_ext
from metadnas_ext.errors import ConfigError, ExtraError, RunError
from metadnas_ext.export import PlainNet, export_model
from metadnas_ext.models import Card
from metadnas_ext.nn import DerivedNet
from metadnas_ext.space import (
    DARTS_V2,
    PRIMITIVES,
    Genotype,
    NASBench201Genotype,
    NASBench201Shape,
    NetworkShape,
    candidates,
)

from .. import _primitives  # noqa: F401  # registers
from ..nn import _bench201, _darts
from ..nn._helpers import assert_close, randomise

TOLERANCE = 1e-5  # relative to the largest logit, in float32
CLASSES = ("cat", "dog", "owl")


def random_genotype(seed: int, nodes: int) -> Genotype:
    rng = random.Random(seed)

    def cell() -> list[tuple[str, int]]:
        return [
            (rng.choice(PRIMITIVES[1:]), source)
            for node in range(nodes)
            for source in rng.sample(range(2 + node), 2)
        ]

    return Genotype.of(cell(), cell())


def network(seed: int, size: int, nodes: int = 3, layers: int = 4) -> tuple[DerivedNet, Card]:
    """A random float32 network whose parameters and statistics are all off their defaults."""
    genotype = random_genotype(seed, nodes)
    shape = NetworkShape(4, layers, nodes, len(CLASSES), image_size=size, image_channels=3)
    net = DerivedNet(shape, genotype).eval()
    randomise(net, seed)
    return net, Card(shape, genotype, CLASSES, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


def batch(count: int, card: Card) -> Tensor:
    size = card.shape.image_size
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, card.shape.image_channels, size, size, generator=generator)


def assert_same_logits(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    actual, expected = actual.detach(), expected.detach()
    assert float((actual - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("seed", "size"), [(0, 8), (1, 7), (2, 9), (3, 5), (4, 11)])
def test_plain_network(seed: int, size: int, training: bool) -> None:
    """In float64, beside the fused network and the tests' own modules from the definitions."""
    net, card = network(seed, size)
    net = net.double().train(training)
    plain = PlainNet.of(net)
    assert plain.training == training
    genotype, shape = card.genotype, card.shape
    truth = _darts.evaluation_network(
        genotype.normal, genotype.reduce, shape.channels, shape.layers, classes=len(CLASSES)
    )
    truth.load_state_dict(plain.state_dict())
    x = batch(3, card).double()
    assert_close(plain(x), truth.train(training)(x), "definition")
    assert_close(plain(x), net(x), "fused")


def test_plain_network_has_every_operation() -> None:
    """The random networks above hold each operation at each stride."""
    seen = {
        (name, source < 2 and cell == "reduce")
        for seed in range(5)
        for cell in ("normal", "reduce")
        for name, source in getattr(random_genotype(seed, 3), cell)
    }
    assert seen == {(name, strided) for name in PRIMITIVES[1:] for strided in (False, True)}


def bench_network(names: Sequence[str], size: int, seed: int = 0) -> tuple[DerivedNet, Card]:
    shape = NASBench201Shape(4, 6, len(CLASSES), size, candidates=tuple(dict.fromkeys(names)))
    genotype = NASBench201Genotype(tuple(names))
    net = DerivedNet(shape, genotype).eval()
    randomise(net, seed)
    return net, Card(shape, genotype, CLASSES, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


def partial_network(size: int) -> tuple[DerivedNet, Card]:
    genotype = random_genotype(0, 3)
    shape = NetworkShape(8, 4, 3, len(CLASSES), image_size=size, partial=4)
    net = DerivedNet(shape, genotype).eval()
    randomise(net, 0)
    return net, Card(shape, genotype, CLASSES, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


def own_network(size: int) -> tuple[DerivedNet, Card]:
    """Registered primitives at both strides, a constant and a bare batch norm among them."""
    names = ("squeeze_excite", "norm_only", "conv_1x3_3x1", "sep_conv_3x3")
    shape = NetworkShape(4, 4, 2, len(CLASSES), image_size=size, candidates=names)
    cell = list(zip(names, (0, 1, 1, 2), strict=True))
    genotype = Genotype.of(cell, cell)
    net = DerivedNet(shape, genotype).eval()
    randomise(net, 0)
    return net, Card(shape, genotype, CLASSES, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


BENCH = ("nor_conv_3x3", "none", "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3")
OTHERS = {
    "nasbench201": lambda size: bench_network(BENCH, size),
    "own in nasbench201": lambda size: bench_network(("squeeze_excite", *BENCH[1:]), size),
    "own": own_network,
    "partial": partial_network,
}
"""Networks of other spaces than DARTS', or with primitives that it has not."""


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [8, 7])
@pytest.mark.parametrize("kind", list(OTHERS))
def test_plain_network_of_every_space(kind: str, size: int, training: bool) -> None:
    """In float64, under the same names; tests/nn hold `DerivedNet` to the definitions."""
    net, card = OTHERS[kind](size)
    net = net.double().train(training)
    plain = PlainNet.of(net)
    x = batch(3, card).double()
    assert_close(plain(x), net(x), kind)
    constants = {n for n in plain.state_dict() if n.endswith("halves")}
    assert set(plain.state_dict()) - constants == set(net.state_dict())
    assert bool(constants) == kind.startswith("own")


@pytest.mark.parametrize("size", [8, 5])
def test_plain_nasbench201_network_is_the_definition(size: int) -> None:
    net, card = bench_network(BENCH, size)
    plain = PlainNet.of(net.double())
    truth = _bench201.network(BENCH, 4, 2, len(CLASSES)).eval()
    truth.load_state_dict(plain.state_dict())
    x = batch(3, card).double()
    assert_close(plain(x), truth(x), "definition")


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(OTHERS))
@pytest.mark.parametrize("size", [8, 7])
def test_torch_export_of_every_space(kind: str, size: int, tmp_path: Path) -> None:
    net, card = OTHERS[kind](size)
    path = export_model(net, card, tmp_path / "net.pt2", "torch")
    files = {"card.json": ""}
    program = torch.export.load(path, extra_files=files)
    assert Card.from_json(json.loads(files["card.json"])) == card
    for count in (1, 5):
        x = batch(count, card)
        assert_same_logits(program.module()(x), net(x))


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(OTHERS))
def test_onnx_of_every_space(kind: str, tmp_path: Path) -> None:
    for module in ("onnx", "onnxscript"):
        pytest.importorskip(module, reason="the extra onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    net, card = OTHERS[kind](8)
    session = runtime.InferenceSession(export_model(net, card, tmp_path / "net.onnx", "onnx"))
    for count in (1, 5):
        x = batch(count, card)
        (logits,) = session.run(["logits"], {"images": x.numpy()})
        assert_same_logits(torch.from_numpy(logits), net(x).detach())


class Undecided(nn.Module):
    """What it does depends on its numbers, which no exported program can."""

    def __init__(self, channels: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(stride, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) if float(x.sum()) > 0 else -self.pool(x)


def test_a_primitive_that_cannot_be_exported_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(candidates, "_registered", {})
    metadnas_ext.register_primitive("undecided", Undecided)
    net, card = bench_network(("undecided", *BENCH[1:]), 8)
    with pytest.raises(ConfigError, match="cannot export this network with undecided: "):
        export_model(net, card, tmp_path / "net.pt2", "torch")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("seed", "size"), [(0, 8), (1, 7), (2, 9)])
def test_torch_export(seed: int, size: int, tmp_path: Path) -> None:
    net, card = network(seed, size, nodes=2, layers=3)
    path = export_model(net, card, tmp_path / "deep" / "net.pt2", "torch")
    files = {"card.json": ""}
    program = torch.export.load(path, extra_files=files)
    assert Card.from_json(json.loads(files["card.json"])) == card
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert all(call.startswith("aten.") for call in calls)
    for count in (1, 2, 5):
        x = batch(count, card)
        assert_same_logits(program.module()(x), net(x))


def test_torch_export_runs_without_the_package(tmp_path: Path) -> None:
    net, card = network(5, 6, nodes=1, layers=1)
    export_model(net, card, tmp_path / "net.pt2", "torch")
    x = batch(2, card)
    torch.save((x, net(x).detach()), tmp_path / "truth")
    code = (
        "import sys, torch\n"
        f"x, truth = torch.load({str(tmp_path / 'truth')!r})\n"
        f"out = torch.export.load({str(tmp_path / 'net.pt2')!r}).module()(x)\n"
        "assert not any(name.startswith('metadnas') for name in sys.modules)\n"
        "assert (out - truth).abs().max() <= 1e-5 * truth.abs().max()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env={"PYTHONPATH": ""})


@pytest.mark.parametrize(("seed", "size"), [(0, 8), (1, 7)])
def test_onnx(seed: int, size: int, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    net, card = network(seed, size, nodes=2, layers=3)
    path = export_model(net, card, tmp_path / "net.onnx", "onnx")
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = runtime.InferenceSession(path)
    about = session.get_modelmeta().custom_metadata_map
    assert Card.from_json(json.loads(about["card.json"])) == card
    for count in (1, 2, 5):
        x = batch(count, card)
        (logits,) = session.run(["logits"], {"images": x.numpy()})
        assert_same_logits(torch.from_numpy(logits), net(x).detach())


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    net, card = network(0, 8, nodes=1, layers=1)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExtraError, match=r'onnx, onnxscript is not installed.*\[onnx\]"'):
        export_model(net, card, tmp_path / "net.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    net, card = network(0, 8, nodes=1, layers=1)
    with pytest.raises(ConfigError, match="the format is 'tflite', expected one of torch, onnx"):
        export_model(net, card, tmp_path / "net.tflite", "tflite")
    with pytest.raises(ConfigError, match=r"a file of format torch ends in \.pt2, got 'net\.onnx'"):
        export_model(net, card, tmp_path / "net.onnx", "torch")
    with pytest.raises(ConfigError, match="the network has 2 clients"):
        PlainNet.of(DerivedNet(NetworkShape(4, 8, classes=3), DARTS_V2, clients=2))
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write"):
        export_model(net, card, tmp_path / "file" / "net.pt2", "torch")
