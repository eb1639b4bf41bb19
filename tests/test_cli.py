"""The command line: full runs, and one line for everything a user can get wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import metadnas_ext
from metadnas_ext.cli import app
from metadnas_ext.config import Config
from metadnas_ext.errors import RunError
from metadnas_ext.federated.federation import Federation
from metadnas_ext.federated.runner import create_run, load_config
from metadnas_ext.files import LOCK, locked
from metadnas_ext.space import candidates, cheapest_cost

from .federated._tiny import METHODS, TINY, events, run_in, tiny_config

SMALL = [argument for key, value in TINY.items() for argument in ("--set", f"{key}={value}")]
"""The tiny federation of the engine tests."""


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder of each test; a run folder that nobody asked for would appear in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")  # wide enough for whole names in tables


def metadnas(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def one_line_error(result: Result) -> str:
    """The message of a command that failed as it should."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.output
    return lines[0]


def write_images(folder: Path, classes: int, each: int) -> Path:
    """Classes of bright and dark PNGs of 10x10."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(90 * label, 90 * label + 70, (10, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{number}.png")
    return folder


def assert_prints(output: str, percentage: float) -> None:
    """Rounded to one digit or more, whichever way halves go."""
    printed = [float(number) for number in re.findall(r"\d+\.\d+", output)]
    assert any(abs(number - percentage) < 0.0501 for number in printed), percentage


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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a finished compare run with two methods."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_in(folder, Federation.build(Config().updated(TINY)), ["fedavg", "fedavg_ft"])
    torch.set_num_threads(threads)
    yield folder
    assert (folder / "results.json").exists()


MISTAKES = {
    "unknown dataset": (["--dataset", "cifar-10"], "did you mean 'cifar10'"),
    "missing folder": (
        ["--dataset", "imagefolder", "--data-dir", "nowhere"],
        "nowhere does not exist",
    ),
    "no folder": (["--dataset", "imagefolder"], "needs data_dir"),
    "empty folder": (["--dataset", "imagefolder", "--data-dir", "empty"], "found none"),
    "one class": (["--dataset", "imagefolder", "--data-dir", "single"], "only one, 'class0'"),
    "no cifar": (["--dataset", "cifar10", "--data-dir", "empty"], "cifar10 not found in empty"),
    "too few samples": (["--clients", "300"], "cannot give 300 clients 10 each"),
    "no draw": (["--dirichlet", "0.001", "--clients", "20"], "no Dirichlet(0.001) draw"),
    "bad dirichlet": (["--dirichlet", "-1"], "data.dirichlet is -1.0"),
    "bad partition": (["--partition", "random"], "data.partition is 'random', expected one of"),
    "all unseen": (["--clients", "2", "--set", "data.unseen=0.9"], "none would train"),
    "bad budget": (
        ["--budget", "cheap"],
        "budget.levels is 'cheap', expected float values, comma-separated",
    ),
    "no such gpu": (["--device", "cuda:99"], "run.device is 'cuda:99'"),
    "no device": (["--device", "gpu"], "expected cpu, cuda, cuda:<n> or auto"),
    "graphs on the CPU": (["--set", "client.graphs=true"], "client.graphs is true, expected false"),
    "no such module": (["--import", "nobodys_module"], "--import nobodys_module: ModuleNotFound"),
    "no such file": (["--import", "nobodys.py"], "--import nobodys.py: FileNotFoundError"),
    "unknown space": (["--set", "space.space=darst"], "did you mean 'darts'?"),
    "layers of a stage": (["--set", "space.space=nasbench201", "--layers", "4"], "multiple of 3"),
    "nodes of a bench cell": (
        ["--set", "space.space=nasbench201", "--set", "space.nodes=3"],
        "a cell of NAS-Bench-201 has 4",
    ),
    "parts of a bench cell": (
        ["--set", "space.space=nasbench201", "--set", "space.partial=2"],
        "partial channels are for DARTS cells",
    ),
    "channels in parts": (["--set", "space.partial=3"], "must divide the 8 channels"),
    "bad candidates": (["--set", "space.candidates=none"], "only 'none'"),
    "twice a candidate": (["--set", "space.candidates=none,none,skip_connect"], "different names"),
    "unknown key": (["--set", "client.alpha_lrr=1"], "did you mean client.alpha_lr?"),
    "key without its section": (["--set", "lr=1"], "did you mean client.lr?"),
    "key of two sections": (
        ["--set", "alpha_lr=1"],
        "did you mean client.alpha_lr or server.alpha_lr?",
    ),
    "misspelt candidate": (
        ["--set", "space.candidates=none,skip_conect"],
        "(did you mean 'skip_connect'?)",
    ),
    "malformed set": (["--set", "client.alpha_lr"], "expected section.name=value"),
    "wrong type": (["--set", "client.epochs=two"], "client.epochs is 'two', expected int"),
    "infinite": (["--set", "client.lr=inf"], "client.lr is inf"),
    "brackets": (["--set", "[red]x[/]=1"], "unknown parameter '[red]x[/]'"),
    "unknown preset": (["--preset", "fast"], "--preset is 'fast', expected one of quick, paper"),
    "misspelt preset": (["--preset", "papre"], "(did you mean 'paper'?)"),
    "missing file": (["--config", "none.toml"], "cannot read the configuration none.toml"),
    "damaged file": (["--config", "bad.toml"], "bad.toml is not valid TOML"),
    "file with unknown key": (["--config", "unknown.toml"], "unknown parameter 'data.sparkles'"),
    "resume without out": (["--resume"], "--resume needs --out"),
    "resume of nothing": (["--resume", "--out", "nowhere"], "nowhere is not a run folder"),
    "resume of another folder": (["--resume", "--out", "single"], "is not a run folder"),
    "one pixel": (["--image-size", "1", "--batch-size", "2"], "batch norm needs more"),
    "out is a file": (["--out", "bad.toml"], "bad.toml exists already"),
    "out is in use": (["--out", "single"], "single exists already"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing_behind(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "single", 1, 2)
    (tmp_path / "bad.toml").write_text("[data")
    (tmp_path / "unknown.toml").write_text("[data]\nsparkles = 3")
    before = sorted(tmp_path.rglob("*"))
    arguments, message = MISTAKES[name]
    assert message in one_line_error(metadnas("search", "--set", "data.max_images=200", *arguments))
    assert sorted(tmp_path.rglob("*")) == before


def test_impossible_budget_names_the_cheapest(tmp_path: Path) -> None:
    cheapest = cheapest_cost(Federation.build(Config().updated(TINY)).costs)
    for level in ("0.001", "20"):
        message = one_line_error(metadnas("search", *SMALL, "--budget", f"0.9,{level}"))
        assert f"below the cheapest feasible cost of {cheapest:.0f} macs" in message
    assert not list(tmp_path.iterdir())


def test_unknown_method(tmp_path: Path) -> None:
    message = one_line_error(metadnas("compare", *SMALL, "--methods", "fedavg,fedprox"))
    assert "unknown method 'fedprox'; known: meta_dnas, fedavg, fedavg_ft, darts" in message
    assert not list(tmp_path.iterdir())


def test_mistakes_in_methods(tmp_path: Path) -> None:
    message = one_line_error(metadnas("compare", *SMALL, "--methods", "fedavg,fedpr"))
    assert "(did you mean 'fedper'?)" in message
    message = one_line_error(metadnas("compare", *SMALL, "--methods", "fedavg,darts,fedavg"))
    assert "--methods is 'fedavg,darts,fedavg', expected each method once" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["ten", "1.5"])
def test_flags_of_the_wrong_type(value: str, tmp_path: Path) -> None:
    result = metadnas("search", "--clients", value)
    assert result.exit_code == 2
    assert "--clients" in result.stderr
    assert not list(tmp_path.iterdir())


def test_report_on_something_else(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        assert folder in one_line_error(metadnas("report", folder))
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_places_that_cannot_be_written(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = one_line_error(metadnas("report", str(finished), "--out", "file/below"))
    assert message == "error: cannot write to file/below: Not a directory"


def test_a_comparison_that_cannot_be_written(finished: Path, tmp_path: Path) -> None:
    """The run is done and stays; only its table has no place."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "comparison.csv").unlink(missing_ok=True)
    (copy / "comparison.csv").mkdir()
    message = one_line_error(metadnas("compare", "--out", "run", "--resume"))
    assert message == "error: cannot write to run: Is a directory"


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


def test_existing_run_is_not_overwritten(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    message = one_line_error(metadnas("search", *SMALL, "--out", str(finished)))
    assert f"{finished} exists already" in message
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_resume_with_another_configuration_names_the_keys(finished: Path) -> None:
    again = ["compare", "--resume", "--out", str(finished)]
    message = one_line_error(metadnas(*again, "--seed", "3", "--set", "client.lr=0.5"))
    assert "run.seed (0, 3)" in message
    assert "client.lr (0.01, 0.5)" in message
    assert "data.clients" not in message


def test_resume_with_another_preset_names_the_keys(finished: Path) -> None:
    """A preset is as much a request for its values as flags are."""
    again = ["compare", "--resume", "--out", str(finished)]
    message = one_line_error(metadnas(*again, "--preset", "paper", *SMALL))
    assert "data.dataset ('digits', 'cifar10')" in message
    assert "server.cohort (16, 10)" in message
    assert "server.rounds" not in message  # --set gave the saved value
    assert metadnas(*again, "--preset", "quick", *SMALL).exit_code == 0


def test_a_run_keeps_its_device(finished: Path) -> None:
    again = ["compare", "--resume", "--out", str(finished)]
    message = one_line_error(metadnas(*again, "--device", "cuda:99"))
    assert "run.device ('cpu', 'cuda:99')" in message
    assert "change run.device in its config.json" in message
    path = finished / "config.json"
    before = path.read_text()
    path.write_text(before.replace('"device": "cpu"', '"device": "cuda:99"'))
    for options in ([], ["--preset", "quick", *SMALL]):  # a preset has no say in it
        assert "run.device is 'cuda:99'" in one_line_error(metadnas(*again, *options))
    path.write_text(before)


def test_auto_is_settled_when_a_run_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ["compare", "--methods", "fedavg", "--out", "run", "--device", "auto"]
    assert metadnas(*arguments, *SMALL, "--set", "server.rounds=0").exit_code == 0
    assert load_config(tmp_path / "run")[0].run.device == "cpu"
    assert metadnas(*arguments, "--resume").exit_code == 0


def test_a_folder_in_use_is_refused(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with locked(finished):
        message = one_line_error(metadnas("compare", "--resume", "--out", str(finished)))
    assert f"{finished} is in use by another process (number {os.getpid()})" in message
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")}.keys() == before.keys()


@pytest.mark.parametrize("held", [".", "seed-1"])
def test_every_folder_of_a_comparison_is_locked(held: str, tmp_path: Path) -> None:
    """Also against a run that goes on with one of its seeds alone."""
    arguments = ["compare", *SMALL, *SEEDED, "--seeds", "0,1", "--out", "study"]
    with locked(tmp_path / "study" / held):
        message = one_line_error(metadnas(*arguments))
        assert f"{Path('study') / held} is in use by another process" in message
    assert [p.name for p in (tmp_path / "study").rglob("*") if p.is_file()] == []
    assert metadnas(*arguments).exit_code == 0  # the empty folders are not in the way
    assert not list((tmp_path / "study").rglob(LOCK))
    with locked(tmp_path / "study" / held):
        assert "is in use" in one_line_error(metadnas("compare", "--out", "study", "--resume"))


def test_seeds_are_gone_on_with_whatever_seed_the_preset_has(tmp_path: Path) -> None:
    arguments = ["compare", *SMALL, *SEEDED, "--out", "study"]
    assert metadnas(*arguments, "--seeds", "3,4").exit_code == 0
    again = metadnas(*arguments, "--resume", "--preset", "quick")
    assert again.exit_code == 0, again.output
    message = one_line_error(metadnas(*arguments, "--resume", "--seed", "3"))
    assert "run.seed (4, 3)" in message


def test_a_run_over_flower_is_not_gone_on_with_in_one_process(tmp_path: Path) -> None:
    """What its clients keep is in none of its checkpoints: they would start again from nothing."""
    create_run(tmp_path / "run", tiny_config(), ["ditto"])
    (tmp_path / "run" / "flower.json").write_text('{"run": "ab"}')
    message = one_line_error(metadnas("compare", "--resume", "--out", "run"))
    assert "run is a run over Flower: what its clients keep is on the nodes" in message


def test_resume_with_other_methods(finished: Path) -> None:
    resume = ["--resume", "--out", str(finished)]
    message = "the run holds fedavg, fedavg_ft; given: "
    assert message + "meta_dnas" in one_line_error(metadnas("search", *resume))
    other = metadnas("compare", *resume, "--methods", "darts,fedavg")
    assert message + "darts, fedavg" in one_line_error(other)


@pytest.mark.parametrize("extra", [[], ["--methods", "fedavg, fedavg_ft"], SMALL], ids=len)
def test_resume_of_a_finished_run_prints_its_table(finished: Path, extra: list[str]) -> None:
    before = (finished / "results.json").read_bytes()
    result = metadnas("compare", "--resume", "--out", str(finished), *extra)
    assert result.exit_code == 0, result.output
    assert "FedAvg + fine-tuning" in result.stdout
    assert (finished / "results.json").read_bytes() == before


def test_a_comparison_of_one_method_can_be_resumed(tmp_path: Path) -> None:
    arguments = ["compare", "--methods", "meta_dnas", "--out", "run"]
    assert metadnas(*arguments, *SMALL, "--set", "server.rounds=0").exit_code == 0
    assert metadnas(*arguments, "--resume").exit_code == 0


SEEDED = ["--methods", "fedavg,fedavg_ft", "--set", "server.rounds=1"]


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


def test_a_seed_that_cannot_run_stops_all_before_anything_is_written(tmp_path: Path) -> None:
    """200 images hardly give four clients 48 each: seed 0 draws such a partition, seed 3 none."""
    Federation.build(Config().updated(TINY | {"data.min_size": 48}))
    tight = ["--set", "data.min_size=48", "--seeds", "0,3"]
    message = one_line_error(metadnas("compare", *SMALL, *SEEDED, *tight))
    assert "no Dirichlet(0.5) draw" in message
    assert not list(tmp_path.iterdir())


def test_interrupted_seeds_can_be_resumed(tmp_path: Path) -> None:
    arguments = ["compare", *SMALL, *SEEDED, "--seeds", "0,1"]
    process = started(*arguments, "--set", "server.rounds=20", "--out", "stopped")
    wait_for_metrics(tmp_path / "stopped" / "seed-0", process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "metadnas compare --out stopped --resume" in stderr
    assert (tmp_path / "stopped" / "seed-1" / "config.json").exists()
    assert not (tmp_path / "stopped" / "seed-1" / "results.json").exists()
    other = metadnas("compare", "--out", "stopped", "--resume", "--seeds", "0,2")
    assert "stopped holds the seeds [0, 1]; given: [0, 2]" in one_line_error(other)
    assert metadnas("compare", "--out", "stopped", "--resume").exit_code == 0
    assert metadnas(*arguments, "--set", "server.rounds=20", "--out", "whole").exit_code == 0
    for seed in (0, 1):
        one, two = (tmp_path / f / f"seed-{seed}/results.json" for f in ("stopped", "whole"))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0,1,1"], "expected different whole numbers"),
        (["--seeds", "0,-1"], "expected different whole numbers"),
        (["--seeds", ""], "expected different whole numbers"),
        (["--seeds", "0,1", "--seed", "3"], "--seeds is '0,1' and run.seed is given too"),
        (["--seeds", "0,1", "--set", "run.seed=3"], "run.seed is given too"),
        (["--target", "70"], "--target is 70.0, expected a validation accuracy"),
    ],
)
def test_mistakes_of_a_comparison(arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message in one_line_error(metadnas("compare", *SMALL, *arguments))
    assert not list(tmp_path.iterdir())


def test_several_runs_need_a_place_for_their_report(finished: Path, tmp_path: Path) -> None:
    message = one_line_error(metadnas("report", str(finished), str(finished)))
    assert "needs --out" in message
    twice = metadnas("report", str(finished), str(finished), "--out", "here")
    assert "both hold fedavg with seed 0" in one_line_error(twice)
    assert not list(tmp_path.iterdir())


def test_tensorboard_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    arguments = ["search", *SMALL, "--set", "server.rounds=1", "--tensorboard"]
    assert metadnas(*arguments, "--out", "run").exit_code == 0
    assert len(list((tmp_path / "run" / "tensorboard" / "meta_dnas").iterdir())) == 1
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = one_line_error(metadnas(*arguments, "--out", "other"))
    assert 'tensorboard is not installed; it comes with: pip install "metadnas_ext[tens' in message
    assert not (tmp_path / "other").exists()


def test_divergence_is_one_line_and_keeps_the_folder(tmp_path: Path) -> None:
    result = metadnas("search", *SMALL, "--set", "client.lr=1e30", "--set", "client.clip=0")
    message = one_line_error(result)
    assert "Meta-DNAS: every client diverged in each of the last 2 rounds" in message
    assert "a lower client.lr" in message
    output = " ".join(result.stdout.split())
    assert re.search(r"client \d dropped: loss is (nan|inf)", output)
    config, methods = load_config(tmp_path / "runs" / "search-digits-0")
    assert (config.client.lr, methods) == (1e30, ["meta_dnas"])


def test_a_client_that_diverges_in_fine_tuning_is_named(tmp_path: Path) -> None:
    rates = ["client.optimizer=sgd", "client.clip=0", "personalise.finetune_lr=1e30"]
    more = [argument for rate in rates for argument in ("--set", rate)]
    result = metadnas("search", *SMALL, "--set", "server.rounds=0", *more)
    assert result.exit_code == 0, result.output
    output = " ".join(result.stdout.split())
    for client in range(4):
        assert re.search(rf"client {client} diverged \(.* is (nan|inf)\)", output)


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


def started(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    """The command in a process of its own, as a user starts it."""
    root = str(Path(metadnas_ext.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(
        [sys.executable, "-m", "metadnas_ext", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_metrics(folder: Path, process: subprocess.Popen[str]) -> None:
    """Until the first round is saved."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if list(folder.glob("checkpoints/*.json")):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    raise AssertionError("no checkpoint after 60 s")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_process_can_be_resumed(how: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C says how to go on; a killed process cannot. Both end as if nothing had happened."""
    rounds = ["--set", "server.rounds=60", "--set", "space.nodes=1"]
    arguments = ["compare", *SMALL, *rounds, "--methods", "fedavg"]
    process = started(*arguments, "--out", "stopped")
    wait_for_metrics(tmp_path / "stopped", process)
    process.send_signal(how)
    _, stderr = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "--out stopped --resume" in stderr
        assert "Traceback" not in stderr
    else:
        assert process.returncode == -9
    assert not (tmp_path / "stopped" / "results.json").exists(), "stopped too late"
    assert metadnas("compare", "--out", "stopped", "--resume").exit_code == 0
    assert metadnas(*arguments, "--out", "whole").exit_code == 0
    for name in ("results.json", "genotypes.json"):
        one, two = (tmp_path / folder / name for folder in ("stopped", "whole"))
        assert one.read_bytes() == two.read_bytes()
    assert events(tmp_path / "stopped") == events(tmp_path / "whole")


def test_an_impatient_ctrl_c(tmp_path: Path) -> None:
    """The second one comes while the process ends."""
    process = started("search", *SMALL, "--set", "server.rounds=999", "--out", "stopped")
    wait_for_metrics(tmp_path / "stopped", process)
    process.send_signal(signal.SIGINT)
    said = process.stderr.readline() + process.stderr.readline()
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.002)
    assert process.returncode in (130, -signal.SIGINT)
    assert said.endswith("interrupted\n")
    assert process.stderr.read() == ""


def test_a_terminal_without_the_characters_of_a_table(finished: Path) -> None:
    """Not UTF-8: what cannot be printed is ?, and the run does not end in an error."""
    process = started("compare", "--out", str(finished), "--resume", PYTHONIOENCODING="ascii")
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "clients" in stdout
    assert "?" in stdout
    assert "UnicodeEncodeError" not in stderr


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Federation, "build", broken)
    assert isinstance(metadnas("search").exception, ZeroDivisionError)
    assert issubclass(RunError, RuntimeError)
