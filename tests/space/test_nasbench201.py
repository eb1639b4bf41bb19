"""NAS-Bench-201's geometry and costs against published figures; its text form."""

from __future__ import annotations

import json
import re

import pytest
import torch

from metadnas_ext.errors import ConfigError
from metadnas_ext.space import (
    NASBench201Cells,
    NASBench201Genotype,
    NASBench201Shape,
    architecture_from_json,
    cheapest_cost,
    cost_table,
    dearest_cost,
    expected_cost,
    genotype_cost,
)

NAMES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
TEXT = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"
FULL, EMPTY = (NASBench201Genotype((name,) * 6) for name in ("nor_conv_3x3", "none"))


@pytest.mark.parametrize(
    ("classes", "genotype", "params", "flops"),
    [
        (10, FULL, 1_531_546, 220_119_690),
        (10, EMPTY, 73_306, 7_783_050),
        (100, FULL, 1_537_396, 220_125_540),
        (100, EMPTY, 79_156, 7_788_900),
    ],
)
def test_published_costs(
    classes: int, genotype: NASBench201Genotype, params: int, flops: int
) -> None:
    """The benchmark's largest and smallest figures for CIFAR-10 and CIFAR-100 (15 cells of 16
    channels). Its batch norms are affine, and it counts the last layer's bias as a product."""
    shape = NASBench201Shape(classes=classes)
    table = cost_table(shape, "params", affine=True)
    assert genotype_cost(table, genotype) == params
    assert genotype_cost(cost_table(shape), genotype) == flops - classes
    assert cheapest_cost(table) <= genotype_cost(table, genotype) <= dearest_cost(table)


def test_geometry() -> None:
    shape = NASBench201Shape(layers=6, image_size=9)
    assert [(c.index, c.channels, c.size_out) for c in shape.cells()] == [
        (0, 16, 9),
        (1, 16, 9),
        (3, 32, 5),
        (4, 32, 5),
        (6, 64, 3),
        (7, 64, 3),
    ]
    assert [(r.index, r.channels, r.size_in) for r in shape.reductions()] == [
        (2, 32, 9),
        (5, 64, 5),
    ]
    assert (shape.stem_channels, shape.head_channels) == (16, 64)


def test_every_edge_is_kept() -> None:
    """So a one-hot mixture leaves nothing open: its expected cost is the cost."""
    table = cost_table(NASBench201Shape(4, 3, image_size=8))
    genotype = NASBench201Genotype.parse(TEXT)
    p = torch.eye(5, dtype=torch.float64)[[NAMES.index(name) for name in genotype.edges]]
    assert float(expected_cost(table, p)) == genotype_cost(table, genotype)
    assert table.space.choosable() == [0, 1, 2, 3, 4]


def test_text_round_trips() -> None:
    genotype = NASBench201Genotype.parse(TEXT)
    assert genotype.edges == (
        *("nor_conv_3x3", "none", "skip_connect"),
        *("avg_pool_3x3", "nor_conv_1x1", "none"),
    )
    assert str(genotype) == TEXT
    assert architecture_from_json(json.loads(json.dumps(genotype.to_json()))) == genotype
    assert genotype.operations().count("none") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a NAS-Bench-201 architecture"),
        (TEXT[:-1], "not a NAS-Bench-201 architecture: '|avg_pool_3x3~0|nor_conv_1x1~1|none~2'"),
        (TEXT.replace("+", "|"), "not a NAS-Bench-201 architecture"),
        (TEXT.replace("none~2", "none~1"), "node 3 has the inputs 0 to 2"),
        (TEXT.replace("none~2", "none~02"), "node 3 has the inputs 0 to 2"),
        ("|none~0|+|none~0|none~1|", "a cell has 6 operations, got 3"),
        (TEXT.replace("none", "conv_9x9"), "unknown primitive 'conv_9x9'; known: none, skip_"),
        (TEXT.replace("none", "max_pool_3x3"), "unknown primitive 'max_pool_3x3'"),
    ],
)
def test_what_is_no_architecture(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        NASBench201Genotype.parse(text)


def test_wrong_values() -> None:
    with pytest.raises(ConfigError, match=r"layers is 4; .*must be a multiple of 3"):
        NASBench201Shape(layers=4)
    with pytest.raises(ConfigError, match="channels must be at least 1, got 0"):
        NASBench201Shape(0)
    with pytest.raises(ConfigError, match="unknown primitive 'sep_conv_3x3'"):
        NASBench201Cells(("none", "sep_conv_3x3"))
    with pytest.raises(ConfigError, match="not only 'none'"):
        NASBench201Cells(("none",))
    with pytest.raises(ValueError, match="exactly the field arch; got"):
        NASBench201Genotype.from_json({"arch": TEXT, "x": 1})
