"""The command line as a test calls it, in this process and as one of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner, Result

import metadnas_ext
from metadnas_ext.cli import app

from ..federated._tiny import TINY

SMALL = [argument for key, value in TINY.items() for argument in ("--set", f"{key}={value}")]
"""The tiny federation of the engine tests."""
SEEDED = ["--methods", "fedavg,fedavg_ft", "--set", "server.rounds=1"]


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
