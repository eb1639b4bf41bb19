"""Settings as Flower's run configuration, and the app folder."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="flwr is not installed (extra flower)")

from typer.testing import CliRunner, Result

from metadnas_ext.cli import app
from metadnas_ext.errors import ConfigError, RunError
from metadnas_ext.federated.runner import create_run
from metadnas_ext.flower.scaffold import write_app
from metadnas_ext.flower.settings import FlowerSettings, from_run_config, to_run_config

from ..federated._tiny import TINY, tiny_config


def test_settings_and_configuration_come_back() -> None:
    config = tiny_config(
        server__local="head,bn", budget__levels=(0.4, 0.7), data__data_dir='/a "b"', client__lr=1e-5
    )
    settings = FlowerSettings(Path("/runs/x"), ("fedavg", "meta_dnas"), 3, 1.5, 20, 30)
    found = from_run_config(to_run_config(settings, config))
    assert found == (settings, config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "flower.out is missing"),
        ({"flower.out": "x", "flower.speed": 1}, "unknown flower.speed"),
        ({"flower.out": "x", "flower.methods": "magic"}, "flower.methods is 'magic'"),
        ({"flower.out": "x", "flower.nodes": 0}, "flower.nodes is 0"),
        ({"flower.out": "x", "server.round": 3}, "did you mean server.rounds"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_run_config(values)


def test_an_app_folder_is_what_flower_expects(tmp_path: Path) -> None:
    from flwr.cli.build import build_fab_from_disk
    from flwr.common.config import flatten_dict, get_project_config

    config, settings = tiny_config(data__data_dir='a "b" \\ c'), FlowerSettings(tmp_path / "out")
    write_app(tmp_path / "app", settings, config)
    write_app(tmp_path / "app", settings, config)  # again is fine
    project = get_project_config(tmp_path / "app")
    assert project == tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())
    assert project["project"]["dependencies"] == []
    found = flatten_dict(project["tool"]["flwr"]["app"]["config"])
    assert from_run_config(found) == (settings, config)
    assert build_fab_from_disk(tmp_path / "app")
    compile((tmp_path / "app" / "app.py").read_text(), "app.py", "exec")


def test_another_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is no app folder"):
        write_app(tmp_path, FlowerSettings(tmp_path / "out"), tiny_config())


def metadnas(*arguments: str) -> Result:
    small = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    return CliRunner().invoke(app, ["flower", *small, *arguments])


def test_the_command_writes_an_app(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = metadnas("--out", str(out), "--no-simulate", "--methods", "fedavg, meta_dnas")
    assert done.exit_code == 0, done.output
    project = tomllib.loads((tmp_path / "run-app" / "pyproject.toml").read_text())
    assert project["tool"]["flwr"]["app"]["config"]["flower"]["methods"] == "fedavg,meta_dnas"
    assert project["tool"]["flwr"]["app"]["config"]["run"]["threads"] >= 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "magic"], "unknown method 'magic'"),
        (["--nodes", "5"], "flower.nodes is 5, expected at most the 4 clients"),
        (["--nodes", "0"], "flower.nodes is 0, expected more than 0"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = metadnas("--out", str(tmp_path / "run"), *arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())


def test_going_on_takes_the_methods_of_the_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    create_run(out, tiny_config(run__threads=1), ["fedavg", "ditto"])
    found = CliRunner().invoke(app, ["flower", "--resume", "--out", str(out), "--no-simulate"])
    assert found.exit_code == 0, found.output
    project = tomllib.loads((tmp_path / "run-app" / "pyproject.toml").read_text())
    assert project["tool"]["flwr"]["app"]["config"]["flower"]["methods"] == "fedavg,ditto"


def test_a_log_needs_a_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    done = metadnas("--out", str(tmp_path / "run"), "--no-simulate", "--tensorboard")
    assert done.exit_code == 2
    assert "--tensorboard is given, expected it without --no-simulate" in done.stderr
