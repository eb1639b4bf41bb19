"""SIGKILL at a few points of a run; `kill_test.py` does it at as many as one likes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import metadnas_ext

POINTS, SEED = 6, 1
"""Points that find, among others, metrics that are not cut back to the checkpoint."""


def test_a_killed_run_goes_on_to_the_same_files() -> None:
    """Hashes of every file against an undisturbed run's, processes and signals real."""
    root = str(Path(metadnas_ext.__file__).parents[1])
    done = subprocess.run(
        [
            sys.executable,
            Path(__file__).with_name("kill_test.py"),
            f"--points={POINTS}",
            f"--seed={SEED}",
        ],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = re.search(rf"{POINTS} of {POINTS} the same after (\d+) kills", done.stdout)
    assert summary, done.stdout
    assert int(summary[1]) >= POINTS // 2, "hardly ever killed in time"
