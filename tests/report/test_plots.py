"""Pictures: they decode, have a sensible size, and nothing in a cell graph overlaps."""

from __future__ import annotations

import random
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Circle, FancyBboxPatch

from metadnas_ext.errors import ConfigError, RunError
from metadnas_ext.report.cell_layout import lay_out
from metadnas_ext.report.cells import draw_cell, genotype_figure, operation, plot_genotype
from metadnas_ext.report.plots import (
    curve_panels,
    curves_figure,
    plot_clients,
    plot_curves,
)
from metadnas_ext.report.study import load_study


def check_png(path):
    """A picture that decodes, is large enough to read and is not blank."""
    pixels = imread(path)
    height, width = pixels.shape[:2]
    assert 300 < height < 4000
    assert 300 < width < 4000
    assert np.ptp(pixels[..., :3]) > 0.5
    return pixels


def random_cell(rng, nodes=4):
    operations = ["sep_conv_5x5", "dil_conv_3x3", "max_pool_3x3", "skip_connect"]
    return [
        [rng.choice(operations), source]
        for node in range(nodes)
        for source in rng.sample(range(node + 2), 2)
    ]


def test_curves_leave_out_panels_without_data(tmp_path, make):
    searched = ("alpha_entropy", "client_entropy", "expected_cost", "skips", "client_skips")
    rounds = [make.round("fedavg", i, **dict.fromkeys(searched)) for i in (1, 2)]
    run = load_study(make.run(tmp_path / "run", rounds))
    assert [panel.ylabel for panel in curve_panels(run)] == ["accuracy (%)", "cross-entropy"]
    small = check_png(plot_curves(run, tmp_path / "small.png"))
    everything = load_study(make.run(tmp_path / "all", [make.round()]))
    large = check_png(plot_curves(everything, tmp_path / "large.png"))
    assert large.shape[0] > 1.5 * small.shape[0]


def test_a_figure_of_some_rounds_is_one_line(tmp_path, make):
    """An eigenvalue every third round: a gap on each side would leave nothing to see."""
    measured = {3: 2.0, 6: 5.0}
    rounds = [make.round(index=i, hessian_eigenvalue=measured.get(i)) for i in range(1, 8)]
    study = load_study(make.run(tmp_path, rounds))
    (panel,) = (panel for panel in curve_panels(study) if panel.ylabel == "eigenvalue")
    (line,) = curves_figure(study, [panel]).axes[0].lines
    assert line.get_xydata().tolist() == [[3, 2.0], [6, 5.0]]


def test_curves_with_nan_and_infinity(tmp_path, make):
    rounds = [make.round(index=1), make.round(index=2, val_loss=float("inf"), train_loss=None)]
    check_png(plot_curves(load_study(make.run(tmp_path, rounds)), tmp_path / "curves.png"))


def test_nothing_to_plot(tmp_path, make):
    run = load_study(make.run(tmp_path, []))
    with pytest.raises(RunError, match="no round with a finite figure"):
        plot_curves(run, tmp_path / "curves.png")
    with pytest.raises(RunError, match="no client with a test accuracy"):
        plot_clients(run, tmp_path / "clients.png")
    assert not list(tmp_path.glob("*.png"))


def test_clients(compare_run, tmp_path):
    check_png(plot_clients(load_study(compare_run), tmp_path / "clients.png"))


def test_many_clients_some_without_result(tmp_path, make):
    results = [make.result(i, None if i % 9 == 0 else i / 60) for i in range(60)]
    run = load_study(make.run(tmp_path, [make.round()], {"$strange_method": results}))
    check_png(plot_clients(run, tmp_path / "clients.png"))
    check_png(plot_curves(run, tmp_path / "curves.png"))


def test_genotype_png_and_svg(tmp_path, make):
    check_png(plot_genotype(make.genotype(), tmp_path / "cells.png", title="Client $3_"))
    svg = plot_genotype(make.genotype("my_own_operation_with_a_long_name"), tmp_path / "cells.svg")
    root = ElementTree.parse(svg).getroot()
    assert root.tag.endswith("svg")
    assert len(root.findall(".//{*}path")) > 40


def test_draw_cell_as_file_and_into_axes(tmp_path, make):
    cell = make.genotype()["normal"]
    draw_cell(cell, tmp_path / "cell.png", concat=[4, 5])
    check_png(tmp_path / "cell.png")
    figure = Figure(figsize=(3, 2))
    ax = figure.add_subplot()
    draw_cell(cell, ax)
    labels = [text.get_text() for text in ax.texts]
    assert labels[:8].count("skip") == 2
    assert {"sep 3×3", "dil 5×5", "max", "avg", "$c_{k-2}$", "$c_{k}$", "0", "3"} <= set(labels)


BENCH = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3", "own_of_a_user")


def bench_text(rng):
    a, b, c, d, e, f = (rng.choice(BENCH) for _ in range(6))
    return f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"


def test_nas_bench_201_cell(tmp_path):
    """One cell: every edge's operation, three nodes, from c_{k-1} to c_k."""
    text = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|own~0|avg_pool_3x3~1|nor_conv_1x1~2|"
    figure = genotype_figure({"arch": text}, "Client 3")
    (ax,) = figure.axes
    labels = sorted(label.get_text() for label in ax.texts)
    expected = ["conv 3×3", "none", "skip", "own", "avg", "conv 1×1", "0", "1", "2"]
    assert labels == sorted([*expected, "$c_{k-1}$", "$c_{k}$"])
    check_png(plot_genotype({"arch": text}, tmp_path / "cell.png"))
    with pytest.raises(RunError, match="node 1 has the inputs 0 to 0"):
        genotype_figure({"arch": text.replace("~0|+|none", "~1|+|none")})


@pytest.mark.parametrize("seed", range(8))
def test_no_text_overlaps_another_or_leaves_its_box(seed):
    rng = random.Random(seed)
    if seed < 6:
        figure = Figure(figsize=(9, 4))
        ax = figure.add_axes((0, 0, 1, 1))
        draw_cell(random_cell(rng, nodes=rng.choice((2, 4, 5))), ax)
    else:
        figure = genotype_figure({"arch": bench_text(rng)})
        (ax,) = figure.axes
    figure.draw_without_rendering()
    extents = [text.get_window_extent() for text in ax.texts]
    for i, one in enumerate(extents):
        assert figure.bbox.contains(one.x0, one.y0)
        assert figure.bbox.contains(one.x1, one.y1)
        assert not any(one.overlaps(other) for other in extents[:i])
    shapes = [p for p in ax.patches if isinstance(p, Circle | FancyBboxPatch)]
    boxes = [patch.get_window_extent() for patch in shapes]
    for extent in extents:
        corners = [(extent.x0, extent.y0), (extent.x1, extent.y1)]
        assert any(all(box.contains(*corner) for corner in corners) for box in boxes)


@pytest.mark.parametrize("seed", range(10))
def test_no_curve_runs_through_a_foreign_box(seed):
    rng = random.Random(100 + seed)
    sources = [source for _, source in random_cell(rng)]
    targets = [2 + edge // 2 for edge in range(8)]
    layout = lay_out(tuple(sources), tuple(targets), (2, 3, 4, 5), 0.6)
    inputs, output = layout.terminals[:2], layout.terminals[2]
    starts = [*inputs, *layout.nodes]
    ways = [
        (curve, starts[source], label)
        for curve, source, label in zip(layout.curves, sources, layout.labels, strict=True)
    ]
    ways += [(c, node, output) for c, node in zip(layout.exits, layout.nodes, strict=True)]
    boxes = [*layout.terminals, *layout.nodes, *layout.labels]
    t = np.linspace(0, 1, 200)[:, None]
    for curve, start, end in ways:
        p = np.array(curve.points)
        x, y = (
            (1 - t) ** 3 * p[0] + 3 * (1 - t) ** 2 * t * p[1] + 3 * (1 - t) * t**2 * p[2]
            + t**3 * p[3]
        ).T  # fmt: skip
        for box in boxes:
            if box not in (start, end):
                inside = (abs(x - box.x) < box.width / 2) & (abs(y - box.y) < box.height / 2)
                assert not inside.any()


def test_same_cell_same_picture(tmp_path, make):
    for name in ("a.png", "b.png"):
        plot_genotype(make.genotype(), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ([], "two edges a node, got 0"),
        ([["skip_connect", 0]], "two edges a node, got 1"),
        ([["skip_connect", 0], ["skip_connect", 2]], "edge 1 cannot start at 2"),
        ([["skip_connect", -1], ["skip_connect", 1]], "edge 0 cannot start at -1"),
        ([["skip_connect", 0], [1, "skip_connect"]], "edge 1 must be"),
        ([["skip_connect", 0], 7], "edge 1 must be"),
        (None, "a cell is a list of edges"),
    ],
)
def test_what_is_no_cell(tmp_path, cell, message):
    with pytest.raises(RunError, match=message):
        draw_cell(cell, tmp_path / "cell.png")


def test_bad_output_and_missing_cell(tmp_path, make):
    with pytest.raises(RunError, match=r"joins nodes 2 to 5, got \[6\]"):
        draw_cell(make.genotype()["normal"], tmp_path / "cell.png", concat=[6])
    with pytest.raises(RunError, match="no 'reduce' cell"):
        plot_genotype({"normal": make.genotype()["normal"]}, tmp_path / "cell.png")


def test_other_suffixes_are_refused(tmp_path, make):
    with pytest.raises(ConfigError, match=r"must end in \.png or \.svg, got 'cells\.gif'"):
        plot_genotype(make.genotype(), tmp_path / "cells.gif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "label", "family"),
    [
        ("sep_conv_3x3", "sep 3×3", "separable convolution"),
        ("dil_conv_5x5", "dil 5×5", "dilated convolution"),
        ("nor_conv_1x1", "conv 1×1", "convolution"),
        ("max_pool_3x3", "max", "pooling"),
        ("avg_pool_3x3", "avg", "pooling"),
        ("skip_connect", "skip", "skip connection"),
        ("my_block", "my block", "other"),
        ("a_very_long_operation_name", "a very long ope…", "other"),
    ],
)
def test_operation(name, label, family):
    assert operation(name) == (label, family)


def test_pyplot_stays_out():
    code = "import sys, metadnas_ext.report.build; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
