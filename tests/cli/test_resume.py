"""Going on with a run, and what of it must stay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from metadnas_ext.federated.runner import create_run, load_config
from metadnas_ext.files import LOCK, locked

from ..federated._tiny import tiny_config
from ._command import (
    SEEDED,
    SMALL,
    metadnas,
    one_line_error,
)


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
