"""The shim that runs CUDA kernels on the host, on kernels of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "cuda_shim"


@pytest.fixture(scope="module")
def selftest() -> Path:
    if platform.machine() != "x86_64":
        pytest.skip("the shim switches stacks in x86-64 assembly")
    command = [sys.executable, FOLDER / "build.py", "selftest"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return Path(built.stdout.strip())


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_selftest(selftest, order):
    environment = {**os.environ, "METADNAS_SHIM_ORDER": order}
    result = subprocess.run(
        [selftest], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
