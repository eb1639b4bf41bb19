"""A SuperLink and SuperNodes on loopback: one hash, whatever is killed; who is not let in.

    pytest tests/flower/test_deployment.py --slow

Some minutes each: Flower starts a process for every message.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="flwr is not installed (extra flower)")

from metadnas_ext.config import Config
from metadnas_ext.federated.federation import Federation
from metadnas_ext.flower.scaffold import write_app
from metadnas_ext.flower.settings import FlowerSettings

from ..federated._tiny import run_in, tiny_config
from ._deployment import Deployment, rounds_done
from ._keys import make_certificates, make_key
from ._same import assert_same_run

pytestmark = pytest.mark.slow
PHASE = 240
"""Seconds that a message and its reply may take on a busy machine."""


def config_of(rounds: int) -> Config:
    """A run with state on the clients, the last round behind the search."""
    return tiny_config(
        run__threads=1,
        server__rounds=rounds,
        server__search_rounds=rounds - 1,
        server__clients_per_round=3,
        server__local="head,bn",
        client__alpha_lr=0.5,
    )


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in process") / "run"
    run_in(folder, Federation.build(config_of(3)), ["meta_dnas"])
    return folder


def app_for(folder: Path) -> tuple[Path, Path]:
    """An app folder and the run folder it writes to."""
    settings = FlowerSettings(
        folder / "out", start_seconds=PHASE, round_seconds=2 * PHASE, final_seconds=2 * PHASE
    )
    write_app(folder / "app", settings, config_of(3))
    return folder / "app", settings.out


def test_two_nodes_one_of_which_is_killed(in_process: Path, tmp_path: Path) -> None:
    """It comes back under another number, with what its clients have on disk."""
    app, out = app_for(tmp_path)
    with Deployment(tmp_path / "flower") as flower:
        flower.start_superlink()
        flower.start_node(0)
        flower.start_node(1)
        flower.submit(app)
        flower.wait_for_round(out, 1, 3 * PHASE)
        flower.kill("node1")
        flower.start_node(1)
        flower.wait_for_results(out, 8 * PHASE)
    assert_same_run(out, in_process)


def test_the_superlink_is_killed(in_process: Path, tmp_path: Path) -> None:
    """With process isolation: the ServerApp waits for it under a SuperExec of its own."""
    app, out = app_for(tmp_path)
    with Deployment(tmp_path / "flower", isolated=True) as flower:
        flower.start_superlink()
        flower.start_superexec()
        flower.start_node(0)
        flower.start_node(1)
        flower.submit(app)
        flower.wait_for_round(out, 1, 3 * PHASE)
        flower.kill("superlink")
        flower.start_superlink()
        flower.wait_for_results(out, 8 * PHASE)
    assert_same_run(out, in_process)


def test_only_nodes_with_a_known_key_take_part(in_process: Path, tmp_path: Path) -> None:
    """TLS and node keys. A node with a key that was not registered, one without a key and one
    without TLS are turned away; the run waits for the last of its own, which is late."""
    keys = tmp_path / "keys"
    make_certificates(keys)
    app, out = app_for(tmp_path)
    with Deployment(tmp_path / "flower", tls=keys) as flower:
        flower.start_superlink()
        for partition in range(2):
            make_key(keys / f"node{partition}")
            flower.flwr("supernode", "register", f"{keys}/node{partition}.pub", "lo")
        make_key(keys / "rogue")
        key = "--auth-supernode-private-key={}".format
        flower.start_node(1, key(keys / "rogue"), name="rogue")
        wait_to_end(flower, "rogue", "Failed to activate SuperNode")
        flower.start_node(1, name="keyless")
        wait_to_end(flower, "keyless", "All SuperNodes must be registered")
        flower.start_node(1, name="plain", secure=False)
        flower.start_node(0, key(keys / "node0"))
        flower.submit(app)
        flower.wait_for(lambda: (out / "flower.json").exists(), 2 * PHASE, "the server app")
        assert rounds_done(out) == 0
        flower.start_node(1, key(keys / "node1"))
        flower.wait_for_results(out, 8 * PHASE)
        assert "Receiving" not in flower.log("plain")
        listed = flower.flwr("supernode", "list", "lo", "--format", "json")
    assert listed.count('"node-id"') == 2, listed
    assert_same_run(out, in_process)


def wait_to_end(flower: Deployment, name: str, reason: str) -> None:
    """A SuperNode that is not let in says so and gives up."""
    process: subprocess.Popen[bytes] = flower.processes[name]
    flower.wait_for(lambda: process.poll() is not None, PHASE, f"end of {name}")
    assert process.returncode != 0
    assert reason in flower.log(name)
