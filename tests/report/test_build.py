"""The whole report of a run folder."""

# ruff: noqa: RUF001 - dashes are what people are shown

from __future__ import annotations

import csv
import json
import re

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from metadnas_ext.errors import ConfigError, RunError
from metadnas_ext.report import build
from metadnas_ext.report.study import load_study

DATA = ["comparison.csv", "comparison.json", "comparison.md", "clients.csv"]


def build_report(folder, out=None, target=None):
    return build.build_report(load_study(folder), out or folder / "report", target)


def test_report_of_an_ended_run(compare_run):
    written = build_report(compare_run)
    out = compare_run / "report"
    assert sorted(out.iterdir()) == sorted(written)  # nothing temporary is left
    names = [path.name for path in written]
    assert names[:2] == ["curves.png", "clients.png"]
    assert names[-6:] == ["report.md", *DATA, "report.html"]
    # Two distinct searched architectures, one of them the server's; FedAvg has only that one.
    assert [name for name in names if name.startswith("cells_")] == [
        "cells_meta_dnas_meta.png",
        "cells_meta_dnas_client_7.png",
        "cells_fedavg_meta.png",
    ]
    for path in written[:-6]:
        assert min(imread(path).shape[:2]) > 300
    page = (out / "report.md").read_text(encoding="utf-8")
    embedded = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page)
    assert embedded == names[:-6]
    # 0.60, 0.65, ... 0.95: mean 0.775; the unseen client is the last one, one is over budget.
    assert "| Meta-DNAS | 77.50 | 11.46 | 60.00 | 95.00 | – | – |" in page
    assert "| Meta-DNAS | 1.31 M MACs | 1 | 7.5 s | 5.00 kB | 10.0 kB | 1.00 kB |" in page
    # 0.10, 0.11, ... 0.17 better; every method reaches 84 % in its fifth round.
    assert re.search(
        r"\| FedAvg \| 64\.00 .*\| \+13\.50 \[\+1[123]\.\d\d, \+1[345]\.\d\d\] \|", page
    )
    assert "rounds to 84.0 %" in page
    assert "| 2.00 kB | 5 |" in page
    tables = (out / "comparison.md").read_text(encoding="utf-8")
    assert tables in page
    assert "105.0 % (over)" in page
    assert "has not ended" not in page
    assert '"name": "made-up"' in page


def test_clients_as_data(tmp_path, make):
    """A line a client, from which anybody can make the table's means again."""
    clients = [
        make.result(0, 0.25, diverged="loss is nan"),
        make.result(1, None, cost=1.5, budget=None, seen=False),
    ]
    build_report(make.run(tmp_path / "run", [make.round("a,b")], {"a,b": clients}))
    with (tmp_path / "run" / "report" / "clients.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert [first[key] for key in ("method", "seed", "client", "seen")] == ["a,b", "0", "0", "True"]
    assert float(first["test_accuracy"]) == 0.25
    assert first["diverged"] == "loss is nan"
    assert [second[key] for key in ("test_accuracy", "budget", "diverged")] == ["", "", ""]
    assert (second["seen"], float(second["cost"])) == ("False", 1.5)


def test_up_to_six_clients_are_drawn_best_first(tmp_path, make):
    clients = [
        make.result(i, i / 20, genotype=make.genotype(f"sep_conv_{i}x{i}")) for i in range(20)
    ]
    folder = make.run(tmp_path / "run", [make.round()], {"meta_dnas": clients})
    names = [path.name for path in build_report(folder, tmp_path / "out")]
    drawn = [int(n.split("_")[-1][:-4]) for n in names if "_client_" in n]
    # Quantiles 1, 0.75, 0.5, 0.25, 0.1 and 0 of ranks 0..19 (0.5 of 19 rounds to the even 10);
    # client 3 has the meta-architecture but is not among them.
    assert drawn == [19, 14, 10, 5, 2, 0]
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for text in ("client 19 (best, 95.0 %)", "client 0 (worst, 0.0 %)", "client 10 (median"):
        assert text in page


def test_run_that_has_not_ended_gives_curves_and_a_note(tmp_path, make):
    folder = make.run(tmp_path / "run", [make.round()])
    written = [path.name for path in build_report(folder)]
    assert written == ["curves.png", "report.md", "report.html"]
    page = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert "This run has not ended" in page
    assert "Meta-DNAS: 1 (last: 1)" in page


def test_run_without_any_round(tmp_path, make):
    folder = make.run(tmp_path / "run", [])
    assert [path.name for path in build_report(folder)] == ["report.md", "report.html"]
    assert "Recorded rounds: none" in (folder / "report" / "report.md").read_text()


def test_method_without_results_is_noted(tmp_path, make):
    rounds = [make.round("meta_dnas"), make.round("darts")]
    folder = make.run(tmp_path / "run", rounds, {"meta_dnas": [make.result()]})
    build_report(folder)
    page = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert "No test accuracies of: DARTS per client." in page


def test_genotype_of_another_space_is_noted(tmp_path, make):
    strange = [make.result(genotype={"edges": ["nor_conv_1x1"] * 6})]
    folder = make.run(tmp_path / "run", [make.round()], {"meta_dnas": strange})
    build_report(folder)
    page = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert "client 0 (best, 90.0 %): not drawn, the genotype has no 'normal' cell." in page


def test_method_names_cannot_leave_the_folder(tmp_path, make):
    folder = make.run(tmp_path / "run", [make.round()], {"../../evil": [make.result()]})
    for path in build_report(folder):
        assert path.resolve().parent == (folder / "report").resolve()


def test_second_report_replaces_the_first(compare_run):
    assert build_report(compare_run) == build_report(compare_run)


def test_report_of_two_seeds(tmp_path, make):
    folders = []
    for seed in (0, 1):
        results = [make.result(i, (i + seed) / 10) for i in range(5)]
        rounds = [make.round(index=i) for i in range(1, 4 + seed)]
        folders.append(make.run(tmp_path / f"seed-{seed}", rounds, {"meta_dnas": results}))
        (folders[-1] / "config.json").write_text(json.dumps({"run": {"seed": seed}}))
    build_report(tmp_path, tmp_path / "out", target=0.7)
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "| Meta-DNAS | 25.00 ± 7.07 |" in page
    assert "Seed 1. Recorded rounds: Meta-DNAS: 4 (last: 4)." in page
    assert "rounds to 70.0 %" in page
    assert "| 3 (2 of 2) |" in page
    for text in ("All clients of seed 0", "All clients of seed 1", "(best, 40.0 %), seed 0"):
        assert text in page
    with pytest.raises(ConfigError, match="--target is 70"):
        build_report(tmp_path, tmp_path / "other", target=70)
    assert not (tmp_path / "other").exists()


def test_failed_write_leaves_the_old_picture_and_no_debris(compare_run, monkeypatch):
    build_report(compare_run)
    out = compare_run / "report"
    before = {path: path.read_bytes() for path in out.iterdir()}

    def full_disk(self, path, **options):
        path.write_bytes(b"half a pict")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(RunError, match=r"cannot write to .*report: No space left"):
        build_report(compare_run)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_not_a_run_folder(tmp_path):
    with pytest.raises(RunError, match=r"config\.json is missing"):
        build_report(tmp_path)
    assert not (tmp_path / "report").exists()
