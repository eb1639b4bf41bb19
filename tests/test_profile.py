"""`metadnas profile`: what is timed, on this machine, and what a search makes of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from metadnas_ext.cli import app
from metadnas_ext.nn import derived_plan
from metadnas_ext.profiling import command, measure
from metadnas_ext.search import discretize, max_cost_genotype
from metadnas_ext.space import (
    DeviceProfile,
    NetworkShape,
    Part,
    cheapest_cost,
    cost_table,
    dearest_cost,
    genotype_cost,
)
from metadnas_ext.space.latency import all_parts, rest_part

from .federated._tiny import TINY

SMALL = [argument for key, value in TINY.items() for argument in ("--set", f"{key}={value}")]
WIDE, BATCH = NetworkShape(16, 2, nodes=2, image_size=32), 8
"""Wide enough for convolutions to take far longer than calls, also on a busy machine."""


def metadnas(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def wide() -> DeviceProfile:
    return measure.profile(WIDE, batch=BATCH, threads=1, repeats=5)


def test_every_part_is_timed_under_the_conditions_that_were_asked_for(wide: DeviceProfile) -> None:
    before = torch.get_num_threads()
    assert set(wide.ms) == set(all_parts(WIDE))
    assert all(np.isfinite(ms) and ms >= 0 for ms in wide.ms.values())
    assert (wide.shape, wide.batch, wide.threads, wide.repeats) == (WIDE, BATCH, 1, 5)
    assert wide.machine["cores"] > 0
    assert wide.versions["torch"] == torch.__version__
    assert all(ms == 0 for part, ms in wide.ms.items() if part.name == "none")
    assert torch.get_num_threads() == before


def test_more_work_takes_longer(wide: DeviceProfile) -> None:
    """Two 5x5 convolutions of 16 channels against passing the image on, by a wide margin."""
    times = {part.name: ms for part, ms in wide.ms.items() if part[2:] == (16, 32, 1)}
    assert times["sep_conv_5x5"] > 3 * times["skip_connect"]
    assert times["sep_conv_5x5"] > times["dil_conv_3x3"] > 0
    table = wide.cost_table(WIDE)
    assert dearest_cost(table) > 1.2 * cheapest_cost(table)


def test_larger_batches_take_longer(wide: DeviceProfile) -> None:
    """Of a candidate, not of a call, which would be as long."""
    # Eight times the images; on a busy machine 2.8 times the time has been seen.
    part = Part("sep_conv_5x5", 16, 16, 32, 1)
    assert wide.ms[part] > 1.5 * measure.profile(WIDE, threads=1, repeats=3).ms[part]


def test_dear_networks_are_slower_than_cheap_ones(wide: DeviceProfile) -> None:
    """The ends of the space in the order predicted, by the quickest run of each: the middle, and
    medians, are for a quiet machine."""
    table = wide.cost_table(WIDE)
    alike = tuple(torch.zeros(table.cells.shape))
    ends = [discretize(alike, table, cheapest_cost(table)), max_cost_genotype(table, math.inf)]
    predicted = measure.predicted_ms(wide, ends)
    assert predicted[0] == pytest.approx(cheapest_cost(table))
    assert predicted[1] > 1.2 * predicted[0]
    steps = {g: measure._network_step(derived_plan(WIDE, g), BATCH) for g in ends}
    cheap, dear = measure.samples(steps, 30, lambda *_: None).values()
    assert min(dear) > 1.1 * min(cheap)


def test_check_compares_with_whole_networks(wide: DeviceProfile) -> None:
    """Its figures by their definitions, on times that are known."""
    genotypes = measure.spread_genotypes(WIDE, 4, 1)
    predicted = measure.predicted_ms(wide, genotypes)
    assert len(set(predicted)) == 4
    factors = np.array([2.0, 2.0, 2.0, 3.0])
    check = measure.checked(wide, genotypes, list(predicted * factors)).check
    assert check is not None
    assert check["networks"] == 4
    assert check["ratio"] == pytest.approx(2)
    assert check["error"] == pytest.approx(1)
    centred = [values - values.mean() for values in (predicted, predicted * factors)]
    expected = (centred[0] * centred[1]).sum() / np.sqrt([(c**2).sum() for c in centred]).prod()
    assert check["correlation"] == pytest.approx(expected)
    assert measure.checked(wide, genotypes[:1], [1.0]).check["correlation"] is None  # type: ignore[index]


def test_whole_networks_are_checked_in_the_same_measurement() -> None:
    """Others than those that tell the rest, from the cheapest to the dearest, and only if asked."""
    shape = NetworkShape(4, 2, nodes=1, image_size=8)
    check = measure.profile(shape, threads=1, repeats=1, check=3).check
    assert check is not None
    assert check["networks"] == 3
    assert measure.profile(shape, threads=1, repeats=1).check is None
    costs = [genotype_cost(cost_table(shape), g) for g in measure.spread_genotypes(shape, 3, 1)]
    assert costs[0] == cheapest_cost(cost_table(shape))
    assert costs == sorted(costs)


def test_what_is_timed_is_of_the_size_that_networks_have() -> None:
    """Every step's output: its channels (of all nodes of a cell) and its resolution."""
    shape = NetworkShape(4, 3, nodes=2, image_size=9, image_channels=1)
    for part in all_parts(shape):
        if part == rest_part(shape):
            continue
        result = measure._step(part, shape.nodes, 2)()
        out = result[0] if isinstance(result, tuple) else result
        assert isinstance(out, torch.Tensor)
        if part.name == "head":
            assert out.shape == (1, 2, shape.classes)
            continue
        size = -(-part.size // part.stride)
        nodes = 1 if part.name in ("stem", "preprocess") else 2 if part.name == "cell" else None
        nodes = nodes or (1 if part.stride == 2 else measure.CHAIN)
        assert out.shape == (1, 2, size, size, nodes * part.channels), part


def test_profile_then_search_within_milliseconds(tmp_path: Path) -> None:
    """From the command line: a profile of the networks of a run, and the run on that device."""
    device = tmp_path / "device.json"
    result = metadnas("profile", "--out", str(device), *SMALL, "--repeats", "3", "--check", "3")
    assert result.exit_code == 0, result.output
    output = " ".join(result.stdout.split())
    assert "3 whole networks: measured" in output
    assert "sep_conv_5x5" in output
    profile = DeviceProfile.load(device)
    assert profile.check is not None
    arguments = ["--set", f"budget.devices={device},macs", "--budget", "1,0.6"]
    result = metadnas("search", *SMALL, *arguments, "--out", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output
    records = json.loads((tmp_path / "run" / "results.json").read_bytes())["meta_dnas"]
    assert [record["unit"] for record in records] == ["ms", "macs", "ms", "macs"]
    assert [record["device"] for record in records] == [str(device), "macs"] * 2
    for record in records:
        assert record["cost"] <= record["budget"]
    assert "% of the budget" in result.stdout


@pytest.mark.parametrize(("error", "warns"), [(0.08, False), (0.92, True)])
def test_a_profile_of_a_busy_machine_is_told(error: float, warns: bool) -> None:
    line = command._check_line({"networks": 8, "ratio": 0.08, "correlation": None, "error": error})
    assert ("measure again while nothing else runs" in line) == warns


def test_a_profile_needs_no_data(tmp_path: Path) -> None:
    device = tmp_path / "device.json"
    images = ["--classes", "7", "--image-size", "9", "--image-channels", "1"]
    small = ["--channels", "4", "--layers", "1", "--set", "space.nodes=1"]
    arguments = ["--set", "data.dataset=imagefolder", "--repeats", "1", "--check", "0"]
    result = metadnas("profile", "--out", str(device), *images, *small, *arguments)
    assert result.exit_code == 0, result.output
    shape = DeviceProfile.load(device).shape
    assert (shape.classes, shape.image_size, shape.image_channels) == (7, 9, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "nowhere/device.json"], "expected a file in a folder that exists"),
        (["--out", "device.json", "--classes", "3"], "--classes needs --image-size"),
        (["--out", "device.json", "--set", "space.layers=0"], "space.layers is 0"),
        (["--out", "device.json", "--preset", "fast"], "--preset is 'fast'"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = metadnas("profile", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())
