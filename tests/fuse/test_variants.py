"""Supernets in the manner of public code bases: what is converted, and that nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

import metadnas_ext

from . import _networks as networks
from ._compare import assert_same, assert_twins_agree, images, results, twins

Build = Callable[[], nn.Module]
MIXED = 15  # edges of three cells

WHOLE_CELLS: dict[str, Build] = {
    "standard": networks.Standard,
    "FairDARTS": networks.Fair,
    "Plato": partial(networks.Standard, mixed=networks.PlatoMixedOp),
    "pt.darts": networks.PtDarts,
    "MetaNAS": partial(networks.Standard, mixed=networks.MetaMixedOp),
    "P-DARTS": networks.PDarts,
    "NASLib": networks.Naslib,
}
EDGE_BY_EDGE: dict[str, Build] = {
    "PC-DARTS": networks.PcDarts,
    "RobustDARTS": networks.Robust,
    "NNI": networks.Nni,
    "AutoDL": networks.AutoDl,
    "P-DARTS with dropout": partial(networks.PDarts, p=0.3),
}
OTHERS: dict[str, Build] = {
    "GDAS": partial(networks.AutoDl, sampled=True),
    "NAS-Bench-201": networks.Bench201,
    "NAS-Bench-201 cells, DARTS operations": partial(networks.Bench201, darts=True),
    "derived": networks.Derived,
}
ALL = WHOLE_CELLS | EDGE_BY_EDGE | OTHERS


@pytest.mark.parametrize("name", [name for name in ALL if "dropout" not in name])
def test_nothing_changes(name: str) -> None:
    fused, plain = twins(ALL[name]())
    metadnas_ext.fuse(fused)
    assert_twins_agree(fused, plain)


def test_nothing_changes_with_dropout() -> None:
    """In a network its mask is another one: it is drawn in the order of memory, which differs."""
    fused, plain = twins(networks.PDarts(p=0.3))
    metadnas_ext.fuse(fused)
    x = images()
    assert_same(results(fused.eval(), x), results(plain.eval(), x))
    fused, plain = fused.train().cells[0].cell_ops[0], plain.train().cells[0].cell_ops[0]
    x, weights = torch.randn(2, 4, 8, 8).double(), torch.rand(5).double()
    outs = []
    for module in (fused, plain):
        torch.manual_seed(0)
        outs.append(module(x, weights))
    torch.testing.assert_close(*outs)
    assert not torch.equal(outs[0], module(x, weights))  # the mask is drawn anew


@pytest.mark.parametrize("name", WHOLE_CELLS)
def test_cells_are_converted_whole(name: str) -> None:
    report = metadnas_ext.fuse(WHOLE_CELLS[name]())
    cells = [path for path, what in report.converted.items() if what.startswith("cell of 5")]
    assert cells == ["cells.0", "cells.1", "cells.2"]
    assert sum("operations fused" in what for what in report.converted.values()) == MIXED
    assert not report.left


@pytest.mark.parametrize("name", EDGE_BY_EDGE)
def test_mixed_operations_are_converted(name: str) -> None:
    report = metadnas_ext.fuse(EDGE_BY_EDGE[name]())
    assert sum("operations fused" in what for what in report.converted.values()) == MIXED
    assert not any(what.startswith("cell") for what in report.converted.values())


def test_operations_that_no_kernel_has_run_beside_the_others() -> None:
    for build, place in ((networks.Nni, "max_pool_3x3"), (networks.AutoDl, "_ops.1")):
        report = metadnas_ext.fuse(build())
        assert report.left[f"cells.0._ops.0.{place}"] == "a pool without batch norm"
    report = metadnas_ext.fuse(networks.PDarts(p=0.3))
    assert set(report.left.values()) == {"it computes something else in eval mode"}  # dropout
    assert report.converted["cells.0.cell_ops.0"] == "4 of 5 operations fused"


def test_sampled_ones_are_left_with_the_reason() -> None:
    report = metadnas_ext.fuse(networks.AutoDl(sampled=True))
    reason = report.left["cells.0._ops.1.forward_gdas()"]
    assert "candidates at a time (sampled)" in reason
    alone = Sampled(4, 1)
    report = metadnas_ext.fuse(alone)
    assert not report.converted
    assert report.left[""] == "it runs 1 of its 8 candidates at a time (sampled)"
    assert not any("forward" in vars(module) for module in alone.modules())


class Sampled(networks.MixedOp):
    def forward(self, x, weights):
        index = int(weights.argmax())
        return weights[index] * self._ops[index](x)


def test_cells_without_anything_to_fuse_are_left_with_the_reason() -> None:
    report = metadnas_ext.fuse(networks.Bench201())
    assert report.left["cells.0"] == (
        "the kernels know only none and skip_connect of its operations "
        "(a 3x3 convolution that the kernels do not have; a pool without batch norm)"
    )
    assert report.converted["cells.0.edges.1<-0.2"].startswith("ReLU, 1x1 convolution")


@pytest.mark.parametrize(
    "build",
    [
        partial(networks.MixedOp, 4, 1),
        partial(networks.MixedOp, 4, 2),
        partial(networks.PlatoMixedOp, 4, 1),
        partial(networks.PcMixedOp, 16, 2),
        partial(networks.NniChoice, 4, 2),
        partial(networks.NaslibMixedOp, 4, 1),
        partial(networks.AutoDlMixedOp, 4, 1),
        partial(networks.Bench201Cell, 4, True),
    ],
    ids=lambda build: f"{build.func.__name__}{build.args}",
)
def test_a_mixed_operation_alone(build: Build) -> None:
    """No network shows what it is called with."""
    report = metadnas_ext.fuse(build())
    assert "operations fused" in report.converted[""]


def test_a_report_reads_as_text() -> None:
    text = str(metadnas_ext.fuse(networks.Nni()))
    assert text.startswith("converted 22, left 30 as they are\n")
    assert "converted: 5 of 7 operations fused: cells.0._ops.0 and 14 more" in text
    assert "left: a pool without batch norm: cells.0._ops.0.max_pool_3x3 and 29 more" in text
