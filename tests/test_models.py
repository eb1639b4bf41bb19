"""Saved networks: what a run keeps is what it judged, and damage is always found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import metadnas_ext
from metadnas_ext import models
from metadnas_ext.cli import app
from metadnas_ext.errors import RunError
from metadnas_ext.federated.federation import Federation
from metadnas_ext.models import Card
from metadnas_ext.nn import DerivedNet
from metadnas_ext.space import (
    Architecture,
    Genotype,
    NASBench201Genotype,
    NASBench201Shape,
    NetworkShape,
    Shape,
    candidates,
)

from ._primitives import FACTORIES
from .federated._tiny import run_in, tiny_federation
from .nn._helpers import assert_identical, randomise

RAN = ["meta_dnas", "fedavg"]


@pytest.fixture(scope="module")
def federation() -> Federation:
    return tiny_federation(server__rounds=1)


@pytest.fixture(scope="module")
def run(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "run"
    run_in(folder, federation, RAN)
    return folder


def saved(tmp_path: Path) -> tuple[DerivedNet, Card, Path]:
    genotype = Genotype.of(
        [("sep_conv_3x3", 0), ("skip_connect", 1)], [("skip_connect", 0), ("max_pool_3x3", 1)]
    )
    shape = NetworkShape(4, 2, 1, 2, image_size=6, image_channels=1)
    net = DerivedNet(shape, genotype)
    randomise(net, 3)
    card = Card(shape, genotype, ("a", "b"), (0.1,), (0.3,))
    floats = {n: t for n, t in net.state_dict().items() if t.is_floating_point()}
    models.save(tmp_path / "1.safetensors", card, floats)
    return net, card, tmp_path / "1.safetensors"


@pytest.mark.parametrize("method", RAN)
def test_a_client_s_network_reaches_the_accuracy_reported(
    method: str, run: Path, federation: Federation
) -> None:
    """Counted anew, image by image, on the client's own test images, by hand-normalised pixels."""
    store = federation.store
    results = json.loads((run / "results.json").read_bytes())[method]
    for client, result in enumerate(results):
        net = metadnas_ext.load_client(run, client, method)
        assert not net.training
        assert net.genotype.to_json() == result["genotype"]
        indices = federation.splits[client].test
        pixels = store.gather(indices).float() / 255
        x = (pixels - torch.tensor(store.mean)) / torch.tensor(store.std)
        hits = sum(
            int(net(image[None].permute(0, 3, 1, 2)).argmax()) == int(store.labels[i])
            for image, i in zip(x, indices.tolist(), strict=True)
        )
        assert hits / len(indices) == pytest.approx(result["test_accuracy"])


def test_default_method_and_card(run: Path, federation: Federation) -> None:
    own = metadnas_ext.load_client(run, 2)
    net, card = models.load(models.model_path(run, "meta_dnas", 2))
    assert_identical(own.state_dict(), net.state_dict())
    assert card.shape == federation.shape
    assert card.classes == federation.store.classes
    assert (card.mean, card.std) == (federation.store.mean, federation.store.std)


def test_survives_the_file(tmp_path: Path) -> None:
    net, card, path = saved(tmp_path)
    loaded, read = models.load(path)
    assert read == card
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(loaded.state_dict()[name], tensor), name
    again = path.with_name("2.safetensors")
    floats = [(n, t) for n, t in loaded.state_dict().items() if t.is_floating_point()]
    models.save(again, card, dict(reversed(floats)))
    assert again.read_bytes() == path.read_bytes()


def test_every_flipped_or_missing_byte_is_found(tmp_path: Path) -> None:
    _, _, path = saved(tmp_path)
    whole = path.read_bytes()
    broken = tmp_path / "broken.safetensors"
    for position in range(0, len(whole), 41):
        data = bytearray(whole)
        data[position] ^= 4
        broken.write_bytes(data)
        with pytest.raises(RunError, match=r"broken\.safetensors"):
            models.load(broken)
    for size in (0, 7, 100, len(whole) - 1):
        broken.write_bytes(whole[:size])
        with pytest.raises(RunError, match=r"broken\.safetensors"):
            models.load(broken)


BENCH_TEXT = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|"
OTHERS: dict[str, tuple[Shape, Architecture]] = {
    "nasbench201": (NASBench201Shape(2, 3, 2, 6, 1), NASBench201Genotype.parse(BENCH_TEXT)),
    "partial": (
        NetworkShape(4, 2, 1, 2, image_size=6, image_channels=1, partial=2),
        Genotype.of(
            [("sep_conv_3x3", 0), ("skip_connect", 1)], [("skip_connect", 0), ("max_pool_3x3", 1)]
        ),
    ),
    "own in darts": (
        NetworkShape(4, 2, 1, 2, 6, 1, candidates=("squeeze_excite", "skip_connect", "norm_only")),
        Genotype.of(
            [("squeeze_excite", 0), ("norm_only", 1)], [("skip_connect", 0), ("squeeze_excite", 1)]
        ),
    ),
    "own in nasbench201": (
        NASBench201Shape(2, 3, 2, 6, 1, ("none", "conv_1x3_3x1", "norm_only")),
        NASBench201Genotype(("conv_1x3_3x1", "norm_only", "none") * 2),
    ),
}
"""Networks of other spaces than the plain DARTS ones above."""


def saved_other(kind: str, tmp_path: Path) -> tuple[DerivedNet, Card, Path]:
    shape, genotype = OTHERS[kind]
    net = DerivedNet(shape, genotype)
    randomise(net, 3)
    card, path = Card(shape, genotype, ("a", "b"), (0.1,), (0.3,)), tmp_path / "1.safetensors"
    models.save(path, card, {n: t for n, t in net.state_dict().items() if t.is_floating_point()})
    return net, card, path


@pytest.mark.parametrize("kind", list(OTHERS))
def test_networks_of_every_space(kind: str, tmp_path: Path) -> None:
    net, card, path = saved_other(kind, tmp_path)
    loaded, read = models.load(path)
    assert read == card
    assert type(read.shape) is type(card.shape)
    x = torch.randn(3, 1, 6, 6)
    assert_identical({"logits": loaded(x)}, {"logits": net.eval()(x)})


@pytest.mark.parametrize("kind", ["own in darts", "own in nasbench201"])
def test_a_primitive_that_is_not_registered_is_named(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, card, path = saved_other(kind, tmp_path)
    monkeypatch.setattr(candidates, "_registered", {})
    (first, *_) = [name for name in card.shape.candidates if name in FACTORIES]
    message = rf"1\.safetensors: unknown primitive '{first}'.*register_primitive, --import"
    with pytest.raises(RunError, match=message):
        models.load(path)


def test_another_set_of_weights(tmp_path: Path) -> None:
    net, card, path = saved(tmp_path)
    floats = {n: t for n, t in net.state_dict().items() if t.is_floating_point()}
    models.save(path, card, floats | {"extra": torch.zeros(1)})
    with pytest.raises(RunError, match="'extra' is not expected"):
        models.load(path)
    floats.pop("classifier.bias")
    models.save(path, card, floats)
    with pytest.raises(RunError, match=r"'classifier\.bias' is missing"):
        models.load(path)


def test_what_is_not_there_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="keeps no network of client 9 under fedavg; kept: 0 to 3"):
        metadnas_ext.load_client(run, 9, "fedavg")
    with pytest.raises(RunError, match="no networks of 'darts', only of fedavg, meta_dnas"):
        metadnas_ext.load_client(run, 0, "darts")
    with pytest.raises(RunError, match="is not a run folder"):
        metadnas_ext.load_client(tmp_path, 0)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunError, match=r"keeps no networks: not yet, or run\.save_models is off"):
        metadnas_ext.load_client(tmp_path, 0)
    with pytest.raises(RunError, match="cannot read"):
        models.load(tmp_path / "none.safetensors")


def test_models_can_be_left_out(tmp_path: Path) -> None:
    federation = tiny_federation(server__rounds=0, run__save_models=False)
    run_in(tmp_path / "run", federation, ["fedavg"])
    assert (tmp_path / "run" / "results.json").exists()
    assert not (tmp_path / "run" / "models").exists()


def test_the_command_exports_it(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["export", str(run), "1", "--method", "fedavg"])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == "fedavg-client-1.pt2"
    net = metadnas_ext.load_client(run, 1, "fedavg")
    x = torch.randn(3, 1, 8, 8)
    logits = torch.export.load(tmp_path / "fedavg-client-1.pt2").module()(x)
    assert torch.allclose(logits, net(x), rtol=1e-5, atol=1e-6)
    for arguments, message in (
        (["0", "--format", "tflite"], "the format is 'tflite'"),
        (["7"], "keeps no network of client 7"),
        (["0", "--out", "net.onnx"], "ends in .pt2"),
    ):
        failed = CliRunner().invoke(app, ["export", str(run), *arguments])
        assert failed.exit_code == 2
        assert message in failed.stderr
