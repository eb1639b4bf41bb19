"""Commands from end to end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import metadnas_ext
from metadnas_ext.federated.runner import load_config
from metadnas_ext.space import candidates

from ..federated._tiny import METHODS, events
from ._command import (
    SEEDED,
    SMALL,
    assert_prints,
    metadnas,
    one_line_error,
    write_images,
)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["search", "compare", "report", "info"]),
        (["search"], ["--dataset", "--budget", "--resume", "--set", "--preset", "few minutes"]),
        (["compare"], ["--dataset", "--methods", "--resume", "--seeds", "--target", "Table 1"]),
        (["report"], ["RUN", "--out", "--target", "Markdown", "HTML"]),
        (["export"], ["run", "client", "--format", "--method", "--out"]),
        (["info"], ["installation"]),
    ],
)
def test_help(command: list[str], words: list[str]) -> None:
    result = metadnas(*command, "--help")
    assert result.exit_code == 0
    for word in words:
        assert word in result.output
    assert result.stderr == ""


def test_info() -> None:
    result = metadnas("info")
    assert result.exit_code == 0
    assert result.output.startswith(f"metadnas_ext {metadnas_ext.__version__}\n")


def test_version() -> None:
    result = metadnas("--version")
    assert result.exit_code == 0
    assert result.output == f"metadnas_ext {metadnas_ext.__version__}\n"


def test_search_on_digits(tmp_path: Path) -> None:
    """Prints the figures of each round and a table of all clients, and leaves a run folder."""
    result = metadnas("search", *SMALL)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    folder = tmp_path / "runs" / "search-digits-0"
    saved = json.loads((folder / "results.json").read_bytes())
    assert list(saved) == ["meta_dnas"]
    output = " ".join(result.stdout.split())
    assert "digits: 200 images of 8x8, 10 classes, over 4 clients (1 unseen)" in output
    rounds = [e for e in events(folder) if e["event"] == "round"]
    for index, figures in enumerate(rounds):
        assert f"round {index + 1}/2 train loss {figures['train_loss']:.3f}" in output
    for record in saved["meta_dnas"]:
        assert_prints(result.stdout, 100 * record["test_accuracy"])
    assert f"run folder: runs/{folder.name}" in output


OWN_OPERATION = """
import metadnas_ext
from torch import nn

def conv_1x1_of_a_user(channels, stride, affine):
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1, stride, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    )

metadnas_ext.register_primitive("conv_1x1_of_a_user", conv_1x1_of_a_user)
"""


def test_search_in_nas_bench_201_with_a_primitive_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registered by a file; the cells of the results name it, and the report draws them."""
    (tmp_path / "my_ops.py").write_text(OWN_OPERATION)
    space = {
        "space.space": "nasbench201",
        "space.nodes": "4",
        "space.layers": "3",
        "space.candidates": "conv_1x1_of_a_user,avg_pool_3x3",
        "server.rounds": "1",
    }
    settings = [
        argument for key, value in space.items() for argument in ("--set", f"{key}={value}")
    ]
    arguments = ["search", *SMALL, *settings, "--budget", "1", "--out", "run"]
    result = metadnas(*arguments, "--import", "my_ops.py")
    assert result.exit_code == 0, result.output
    saved = json.loads((tmp_path / "run" / "genotypes.json").read_bytes())
    names = re.findall(r"[|]([a-z0-9_]+)~", saved["meta_dnas"]["meta"]["arch"])
    assert len(names) == 6
    assert set(names) <= {"conv_1x1_of_a_user", "avg_pool_3x3"}
    assert metadnas("search", "--import", "my_ops.py", "--out", "run", "--resume").exit_code == 0
    assert metadnas("report", "run").exit_code == 0
    assert "not drawn" not in (tmp_path / "run" / "report" / "report.md").read_text()
    exported = metadnas("export", "run", "0", "--import", "my_ops.py", "--out", "net.pt2")
    assert exported.exit_code == 0, exported.output
    assert torch.export.load("net.pt2").module()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    monkeypatch.setattr(candidates, "_registered", {})
    for command in (("export", "run", "0"), ("search", "--out", "run", "--resume")):
        message = one_line_error(metadnas(*command))
        assert "conv_1x1_of_a_user" in message
        assert "--import" in message


def test_compare_on_an_image_folder_then_report(tmp_path: Path) -> None:
    images = write_images(tmp_path / "photos", 2, 40)
    arguments = ["compare", "--dataset", "imagefolder", "--data-dir", str(images), *SMALL]
    result = metadnas(*arguments, "--out", "run", "--set", "server.rounds=1")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    for title in ("Meta-DNAS", "FedAvg", "FedAvg + fine-tuning", "DARTS per client"):
        assert title in result.stdout
    results = json.loads((tmp_path / "run" / "results.json").read_bytes())
    assert list(results) == METHODS
    for records in results.values():
        assert [record["client"] for record in records] == [0, 1, 2, 3]
        assert all(record["cost"] <= record["budget"] for record in records)
        assert_prints(result.stdout, 25 * sum(record["test_accuracy"] for record in records))

    drawn = metadnas("report", "run")
    assert drawn.exit_code == 0, drawn.output
    files = [Path(line) for line in drawn.stdout.splitlines()]
    assert len(files) > 3
    for file in files:
        assert file.stat().st_size > 0
        assert file.parent == Path("run/report")
    assert {".md", ".png", ".html", ".csv", ".json"} == {file.suffix for file in files}
    assert (tmp_path / "run" / "comparison.csv").exists()


def test_compare_all_methods(tmp_path: Path) -> None:
    """Those that train alike have their rounds once."""
    result = metadnas(
        "compare", *SMALL, "--methods", "all", "--out", "run", "--set", "server.rounds=1"
    )
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    results = json.loads((tmp_path / "run" / "results.json").read_bytes())
    assert list(results)[:4] == METHODS
    assert list(results)[4:] == [
        *("fedavg_head", "fedper", "local_only", "per_fedavg", "ditto", "shared_alpha", "random")
    ]
    output = " ".join(result.stdout.split())
    for title in ("head fine-tuning", "Local only", "Per-FedAvg", "Ditto", "Shared α", "Random"):
        assert title in output
    for records in results.values():
        assert all(record["cost"] <= record["budget"] for record in records)
    rounds = [e["method"] for e in events(tmp_path / "run") if e["event"] == "round"]
    assert rounds == ["meta_dnas", "fedavg", "fedper", "per_fedavg", "ditto"]


@pytest.mark.parametrize("name", ["[bold]", "[", "a[/]b"])
def test_brackets_in_a_path_are_brackets(name: str, tmp_path: Path) -> None:
    arguments = ["compare", *SMALL, "--methods", "fedavg", "--set", "server.rounds=0"]
    done = metadnas(*arguments, "--out", name)
    assert done.exit_code == 0, done.output
    assert done.stdout.count(f"run folder: {Path(name)}\n") == 2
    assert load_config(tmp_path / name)
    done = metadnas("report", name)
    assert done.exit_code == 0, done.output
    assert str(Path(name) / "report" / "report.html") in done.stdout


def test_seeds_are_runs_of_their_own_and_one_table(tmp_path: Path) -> None:
    result = metadnas("compare", *SMALL, *SEEDED, "--seeds", "3,0", "--out", "both")
    assert result.exit_code == 0, result.output
    assert metadnas("compare", *SMALL, *SEEDED, "--seed", "3", "--out", "alone").exit_code == 0
    for name in ("results.json", "genotypes.json"):
        whole, alone = (tmp_path / f / name for f in ("both/seed-3", "alone"))
        assert whole.read_bytes() == alone.read_bytes()
    assert load_config(tmp_path / "both" / "seed-0")[0].run.seed == 0
    table = json.loads((tmp_path / "both" / "comparison.json").read_bytes())
    assert table["seeds"] == [0, 3]
    accuracies = {
        seed: json.loads((tmp_path / f"both/seed-{seed}/results.json").read_bytes())["fedavg"]
        for seed in (0, 3)
    }
    means = [sum(r["test_accuracy"] for r in rows) / len(rows) for rows in accuracies.values()]
    assert table["methods"][0]["mean"] == pytest.approx(sum(means) / 2)
    assert_prints(result.stdout, 100 * sum(means) / 2)
    again = metadnas("compare", "--out", "both", "--resume")
    assert again.exit_code == 0, again.output
    assert again.stdout.endswith("run folder: both\n")
    written = metadnas("report", "both/seed-0", "alone", "--out", "report")
    assert written.exit_code == 0, written.output
    combined = json.loads((tmp_path / "report" / "comparison.json").read_bytes())
    for data in (combined, table):
        for method in data["methods"]:
            assert method.pop("seconds") > 0  # the clock's
    assert combined == table
    assert metadnas("report", "both").exit_code == 0
    assert (tmp_path / "both" / "report" / "report.html").exists()


def test_tensorboard_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    arguments = ["search", *SMALL, "--set", "server.rounds=1", "--tensorboard"]
    assert metadnas(*arguments, "--out", "run").exit_code == 0
    assert len(list((tmp_path / "run" / "tensorboard" / "meta_dnas").iterdir())) == 1
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = one_line_error(metadnas(*arguments, "--out", "other"))
    assert 'tensorboard is not installed; it comes with: pip install "metadnas_ext[tens' in message
    assert not (tmp_path / "other").exists()


def test_settings_come_from_preset_file_flags_and_set_in_this_order(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        "[server]\nrounds = 7\ncohort = 3\n[client]\nepochs = 4\n[data]\ndataset = 'digits'\n"
    )
    arguments = ["search", "--preset", "paper", "--config", "mine.toml", "--rounds", "0"]
    small = [*SMALL, "--set", "server.rounds=0", "--set", "client.epochs=3"]
    result = metadnas(*arguments, "--epochs", "2", *small, "--set", "server.clients_per_round=5")
    assert result.exit_code == 0, result.output
    config, _ = load_config(tmp_path / "runs" / "search-digits-0")
    assert config.data.dataset == "digits"  # the file's, over the preset's
    assert (config.server.rounds, config.server.cohort) == (0, 3)
    assert config.client.epochs == 3  # --set, over the flag's 2 and the file's 4
    assert config.client.alpha_lr == 0.01
