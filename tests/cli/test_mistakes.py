"""What goes wrong is said in one line, and nothing is lost or left behind."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from metadnas_ext.config import Config
from metadnas_ext.errors import RunError
from metadnas_ext.federated.federation import Federation
from metadnas_ext.federated.runner import load_config
from metadnas_ext.space import cheapest_cost

from ..federated._tiny import TINY
from ._command import (
    SEEDED,
    SMALL,
    metadnas,
    one_line_error,
    write_images,
)

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


def test_a_seed_that_cannot_run_stops_all_before_anything_is_written(tmp_path: Path) -> None:
    """200 images hardly give four clients 48 each: seed 0 draws such a partition, seed 3 none."""
    Federation.build(Config().updated(TINY | {"data.min_size": 48}))
    tight = ["--set", "data.min_size=48", "--seeds", "0,3"]
    message = one_line_error(metadnas("compare", *SMALL, *SEEDED, *tight))
    assert "no Dirichlet(0.5) draw" in message
    assert not list(tmp_path.iterdir())


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


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Federation, "build", broken)
    assert isinstance(metadnas("search").exception, ZeroDivisionError)
    assert issubclass(RunError, RuntimeError)
