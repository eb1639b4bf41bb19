"""Exported programs and the plain module give the fused network's logits."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metadnas_ext.errors import ConfigError, ExtraError, RunError
from metadnas_ext.export import PlainNet, export_model
from metadnas_ext.models import Card
from metadnas_ext.nn import DerivedNet
from metadnas_ext.space import DARTS_V2, PRIMITIVES, Genotype, NetworkShape

from ..nn import _darts
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
