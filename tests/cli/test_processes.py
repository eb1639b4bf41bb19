"""The command as a process of its own: signals, kills and poor terminals."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from ..federated._tiny import events
from ._command import (
    SEEDED,
    SMALL,
    metadnas,
    one_line_error,
    started,
    wait_for_metrics,
)


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
