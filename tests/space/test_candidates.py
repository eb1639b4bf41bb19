"""Primitives of the user's own: registration, costs, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import metadnas_ext
from metadnas_ext.config import Config
from metadnas_ext.errors import ConfigError
from metadnas_ext.space import (
    DARTSCells,
    Genotype,
    NASBench201Genotype,
    NASBench201Shape,
    NetworkShape,
    cost_table,
)
from metadnas_ext.space.candidates import ModuleCandidate

from .._primitives import FACTORIES, SqueezeExcite

OWN = ("none", "conv_1x3_3x1", "skip_connect", "squeeze_excite")


def macs_of_squeeze_excite(channels: int, stride: int, size: int) -> int:
    """By hand."""
    half, out = channels // 2, -(-size // stride)
    convolutions = channels * half * size**2 + half * 9 * out**2 + half * channels * out**2
    return convolutions + channels * channels


@pytest.mark.parametrize(("channels", "size"), [(4, 8), (6, 7)])
@pytest.mark.parametrize("stride", [1, 2])
def test_costs_are_counted(channels: int, size: int, stride: int) -> None:
    candidate = DARTSCells(2, OWN).candidate("squeeze_excite")
    found = candidate.cost(channels, stride, size, "macs")
    assert found == macs_of_squeeze_excite(channels, stride, size)
    module = SqueezeExcite(channels, stride, False)
    parameters = sum(p.numel() for p in module.parameters())
    assert candidate.cost(channels, stride, size, "params") == parameters
    own = candidate.cost(channels, stride, size, "params", affine=True)
    assert own == parameters + 2 * channels


def test_cost_tables_hold_them() -> None:
    """Beside the fused candidates, each cell at its own channels and resolution."""
    shape = NetworkShape(4, 3, 2, image_size=7, candidates=OWN)
    table = cost_table(shape)
    fused = cost_table(NetworkShape(4, 3, 2, image_size=7, candidates=(OWN[0], OWN[2])))
    assert torch.equal(table.cells[..., [0, 2]], fused.cells)
    # Cells of 4, 8 and 16 channels on 7, 7 -> 4 and 4 -> 2 pixels; the last two reduce.
    assert table.cells[0, 4, 3] == macs_of_squeeze_excite(4, 1, 7)
    assert table.cells[1, 0, 3] == sum(macs_of_squeeze_excite(*c) for c in ((8, 2, 7), (16, 2, 4)))
    bench = NASBench201Shape(4, 3, image_size=7, candidates=("none", "squeeze_excite"))
    sizes = ((4, 1, 7), (8, 1, 4), (16, 1, 2))
    assert cost_table(bench).cells[0, 0, 1] == sum(macs_of_squeeze_excite(*c) for c in sizes)


def test_given_costs() -> None:
    candidate = ModuleCandidate("mine", SqueezeExcite, lambda c, stride, size: c * stride * size)
    assert candidate.cost(4, 2, 8, "macs") == 64


def test_names_are_known_everywhere() -> None:
    config = Config().updated({"space.candidates": "none,squeeze_excite"})
    assert config.space.candidates == ("none", "squeeze_excite")
    pairs = (("squeeze_excite", 0), ("skip_connect", 1))
    assert Genotype.parse(str(Genotype.of(pairs, pairs))).normal == pairs
    bench = NASBench201Genotype(("squeeze_excite",) * 6)
    assert NASBench201Genotype.parse(str(bench)) == bench


def test_refused_names() -> None:
    for name in ("Conv", "conv 3", "", "3x3", "a|b", "a~0"):
        with pytest.raises(ConfigError, match="lower-case letters"):
            metadnas_ext.register_primitive(name, SqueezeExcite)
    for name in ("none", "sep_conv_3x3", "nor_conv_1x1", "squeeze_excite"):
        with pytest.raises(ConfigError, match=f"'{name}' exists already"):
            metadnas_ext.register_primitive(name, FACTORIES["norm_only"])


def test_a_cell_that_runs_again_replaces_its_primitive() -> None:
    for width in (3, 5):

        def conv_of_a_notebook(channels: int, stride: int, affine: bool) -> nn.Module:
            return nn.Conv2d(channels, channels, width, stride, width // 2)  # noqa: B023

        metadnas_ext.register_primitive("conv_of_a_notebook", conv_of_a_notebook)
        candidate = DARTSCells(1, ("conv_of_a_notebook",)).candidate("conv_of_a_notebook")
        assert candidate.cost(2, 1, 4, "params") == 4 * width**2 + 2


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda c, s, a: nn.Dropout(), "gives another result every time"),
        (lambda c, s, a: nn.Conv2d(c, c, 3, s), "gives (2, 4, 6, 6), expected (2, 4, 8, 8)"),
        (lambda c, s, a: nn.Conv2d(8, c, 3, s, 1), "fails: "),
        (lambda c, s, a: Counting(), "changes its buffers"),
        (lambda c, s, a: torch.relu, "must be built as an nn.Module"),
        (lambda c, s, a: nn.Conv2d(c, c, 3, groups=3), "cannot be built: "),
        (
            lambda c, s, a: nn.BatchNorm2d(c, track_running_stats=False),
            "batch norm '' has no running statistics",
        ),
    ],
)
def test_refused_modules(factory: Callable[[int, int, bool], nn.Module], message: str) -> None:
    candidate = ModuleCandidate("mine", factory)
    with pytest.raises(ConfigError, match=f"primitive 'mine'.*{re.escape(message)}"):
        candidate.cost(4, 1, 8, "macs")


def test_nothing_draws_from_the_global_generator() -> None:
    torch.manual_seed(0)
    ModuleCandidate("fresh", SqueezeExcite).cost(4, 1, 8, "macs")
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))
