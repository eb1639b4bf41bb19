"""Flower's simulation ends with the hash of a run in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="flwr is not installed (extra flower)")

from metadnas_ext.errors import DeadlineError
from metadnas_ext.federated.federation import Federation
from metadnas_ext.flower.settings import FlowerSettings
from metadnas_ext.flower.simulation import simulate

from ..federated._tiny import run_in, tiny_config
from ._same import assert_same_run


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's workers import from the driver's directory too; a checkout may have no _C."""
    monkeypatch.chdir(tmp_path)


def test_a_simulated_run_is_that_of_one_process(tmp_path: Path) -> None:
    """With local parts and rounds behind the search: state on clients, networks of their own."""
    config = tiny_config(
        run__threads=1,
        server__rounds=3,
        server__search_rounds=2,
        server__clients_per_round=3,
        server__local="head,bn",
        client__alpha_lr=0.5,
    )
    run_in(tmp_path / "in process", Federation.build(config), ["meta_dnas"])
    simulate(FlowerSettings(tmp_path / "out"), config, tmp_path / "clients")
    assert_same_run(tmp_path / "out", tmp_path / "in process")


@pytest.mark.slow
def test_errors_of_the_server_come_through(tmp_path: Path) -> None:
    settings = FlowerSettings(tmp_path / "out", start_seconds=0.001)
    with pytest.raises(DeadlineError, match="no node for partition 0, 1 within"):
        simulate(settings, tiny_config(run__threads=1), tmp_path / "clients")
