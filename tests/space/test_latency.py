"""Device profiles: the additive model against a sum over every part of a network, and bad files."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metadnas_ext.errors import ConfigError
from metadnas_ext.space import (
    PRIMITIVES,
    DeviceProfile,
    Genotype,
    NASBench201Shape,
    NetworkShape,
    Shape,
    edges,
    genotype_cost,
)
from metadnas_ext.space.latency import all_parts, fixed_parts

SHAPE = NetworkShape(4, 4, nodes=2, classes=3, image_size=9)
SHAPES = [SHAPE, NetworkShape(6, 8, image_size=32), NetworkShape(4, 1, nodes=1, image_size=5)]


def made_up(shape: NetworkShape, seed: int = 0) -> DeviceProfile:
    """A profile with a random time of each part."""
    draw = torch.Generator().manual_seed(seed)
    parts = all_parts(shape)
    ms = dict(zip(parts, torch.rand(len(parts), generator=draw).tolist(), strict=True))
    return DeviceProfile(shape, 1, 2, 3, {"cpu": "none"}, {"torch": "0"}, "today", ms)


def random_genotype(nodes: int, seed: int) -> Genotype:
    draw = torch.Generator().manual_seed(seed)

    def cell() -> list[tuple[str, int]]:
        pairs = []
        for node in range(nodes):
            for source in torch.randperm(node + 2, generator=draw)[:2].sort()[0].tolist():
                choice = int(torch.randint(1, len(PRIMITIVES), (), generator=draw))
                pairs.append((PRIMITIVES[choice], source))
        return pairs

    return Genotype.of(cell(), cell())


def walked(profile: DeviceProfile, genotype: Genotype) -> float:
    """Time of a network, part by part in the order of its data, sizes as they come out."""
    shape, ms = profile.shape, profile.ms
    halved = {0: shape.image_size}  # size after so many reductions
    for reductions in (1, 2):
        halved[reductions] = -(-halved[reductions - 1] // 2)
    total = ms["rest", shape.image_channels, shape.classes, shape.image_size, 1]
    total += ms["stem", shape.image_channels, shape.stem_channels, shape.image_size, 1]
    states = [(shape.stem_channels, shape.image_size)] * 2
    for cell in shape.cells():
        (c0, s0), (c1, s1) = states
        channels, reduction = cell.channels, cell.reduction
        assert s0 in (s1, 2 * s1, 2 * s1 - 1)
        total += ms["preprocess", c0, channels, s0, 1 if s0 == s1 else 2]
        total += ms["preprocess", c1, channels, s1, 1]
        total += ms["cell", channels, channels, s1, 2 if reduction else 1]
        size = -(-s1 // 2) if reduction else s1
        for name, source in genotype.reduce if reduction else genotype.normal:
            strides = reduction and source < 2
            total += ms[name, channels, channels, s1 if strides else size, 2 if strides else 1]
        states = [states[1], (shape.nodes * channels, size)]
        assert size in halved.values()
    return total + ms["head", states[1][0], shape.classes, states[1][1], 1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_the_table_is_the_sum_over_every_part_of_a_network(shape: NetworkShape, seed: int) -> None:
    profile = made_up(shape, seed)
    table = profile.cost_table(shape)
    assert table.unit == "ms"
    genotype = random_genotype(shape.nodes, seed)
    assert genotype_cost(table, genotype) == pytest.approx(walked(profile, genotype), rel=1e-12)


def test_parts_of_the_darts_network() -> None:
    """8 cells of 3 widths: 5 places for candidates, and each fixed part as often as it occurs."""
    shape = NetworkShape()
    candidates = [part for part in all_parts(shape) if part.name in PRIMITIVES]
    places = {part[2:] for part in candidates}
    assert places == {(16, 32, 1), (32, 32, 2), (32, 16, 1), (64, 16, 2), (64, 8, 1)}
    assert len(candidates) == 5 * 8
    fixed = fixed_parts(shape)
    assert fixed["cell", 32, 32, 16, 1] == 2
    assert fixed["preprocess", 64, 32, 32, 2] == 1  # behind the first reduction
    assert sum(n for part, n in fixed.items() if part.name == "preprocess") == 16
    assert sum(n for part, n in fixed.items() if part.name == "cell") == 8


def test_a_network_may_have_fewer_candidates() -> None:
    profile = made_up(SHAPE)
    names = ("sep_conv_5x5", "none", "max_pool_3x3")
    fewer = profile.cost_table(replace(SHAPE, candidates=names))
    whole = profile.cost_table(SHAPE)
    columns = [PRIMITIVES.index(name) for name in names]
    assert torch.equal(fewer.cells, whole.cells[..., columns])
    assert fewer.cells.shape == (2, len(edges(2)), 3)
    assert fewer.fixed == whole.fixed


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (NASBench201Shape(4, 3), "device profiles are of DARTS cells"),
        (replace(SHAPE, partial=2), "space.partial is 2: device profiles are of 1"),
    ],
)
def test_what_the_model_does_not_cover_is_refused(shape: Shape, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made_up(SHAPE).cost_table(shape)


def test_saves_and_loads_every_number(tmp_path: Path) -> None:
    profile = replace(made_up(SHAPE), check={"networks": 3.0, "correlation": None})
    profile.save(tmp_path / "device.json")
    assert DeviceProfile.load(tmp_path / "device.json") == profile
    assert [path.name for path in tmp_path.iterdir()] == ["device.json"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 8}, "with channels 4, the networks have 8"),
        ({"layers": 5}, "with layers 4, the networks have 5"),
        ({"classes": 10}, "with classes 3, the networks have 10"),
        ({"image_size": 8}, "with image_size 9, the networks have 8"),
    ],
)
def test_another_shape_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made_up(SHAPE).cost_table(replace(SHAPE, **changes))


def test_an_unknown_candidate_is_refused() -> None:
    known = replace(SHAPE, candidates=("none", "skip_connect"))
    with pytest.raises(ConfigError, match="no times of max_pool_3x3, avg_pool_3x3"):
        made_up(known).cost_table(SHAPE)


def damaged(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The JSON data with one value replaced, or, at ..., removed."""
    target = data
    for key in path[:-1]:
        target = target[key]
    if value is ...:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), "metadnas device profile, version 9", "not a device profile of this version"),
        (("ms",), ..., "damaged: no 'ms'"),
        (("ms", 0), ..., "no time of Part"),
        (("ms", 3, "ms"), -1.0, "is -1.0, expected at least 0"),
        (("ms", 3, "ms"), float("nan"), "is nan, expected at least 0"),
        (("ms", 3, "ms"), "fast", "is 'fast', expected a number"),
        (("ms", 3, "stride"), ..., "damaged: no 'stride'"),
        (("ms",), 3, "damaged"),
        (("shape", "layers"), 0, "layers must be at least 1"),
        (("shape", "layers"), "four", "damaged"),
        (("shape",), None, "damaged"),
        (("shape", "candidates"), ["none", "conv"], "unknown primitive 'conv'"),
    ],
)
def test_damage_is_named(path: tuple[Any, ...], value: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "device.json"
    made_up(SHAPE).save(file)
    file.write_text(json.dumps(damaged(json.loads(file.read_text()), path, value)))
    with pytest.raises(ConfigError, match=message) as caught:
        DeviceProfile.load(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 9999])
def test_files_of_something_else(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "device.json"
    for path in (file, tmp_path):
        with pytest.raises(ConfigError, match="cannot read the device profile"):
            DeviceProfile.load(path)
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"not valid JSON|not a device profile"):
        DeviceProfile.load(file)


def test_no_part_is_counted_twice() -> None:
    """Each part's own millisecond reaches the networks that have it, and no other."""
    profile = made_up(SHAPE)
    genotypes = [random_genotype(2, seed) for seed in range(3)]
    before = [genotype_cost(profile.cost_table(SHAPE), g) for g in genotypes]
    for part, genotype in itertools.product(all_parts(SHAPE), range(3)):
        ms = {**profile.ms, part: profile.ms[part] + 1}
        changed = genotype_cost(replace(profile, ms=ms).cost_table(SHAPE), genotypes[genotype])
        alone = replace(profile, ms=dict.fromkeys(ms, 0.0) | {part: 1.0})
        times = walked(alone, genotypes[genotype])
        assert changed - before[genotype] == pytest.approx(times, abs=1e-9)
