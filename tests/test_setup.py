"""What setup.py finds to build CUDA kernels with, and what it says where it finds nothing."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
import torch

SETUP = Path(__file__).parents[1] / "setup.py"


@pytest.mark.skipif(torch.version.cuda is not None, reason="CUDA can be built here")
def test_cuda_is_not_built_in_silence():
    command = [sys.executable, SETUP, "--version"]
    environment = {**os.environ, "FORCE_CUDA": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "FORCE_CUDA=1, but torch" in result.stderr
    assert "is built without CUDA" in result.stderr


def written_script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("headers", ["include", "targets/x86_64-linux/include"])
def test_the_toolkit_of_an_nvcc_that_is_a_script(monkeypatch, tmp_path, headers):
    """A script in /usr/local/bin that starts the toolkit's nvcc is common in images."""
    toolkit = tmp_path / "cuda-13.0"
    written_script(toolkit / "bin" / "nvcc", f"echo '#$ TOP={toolkit}/bin/..' >&2")
    (toolkit / headers).mkdir(parents=True)
    (toolkit / headers / "cuda_runtime.h").touch()
    written_script(tmp_path / "bin" / "nvcc", f'exec {toolkit}/bin/nvcc "$@"')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_HOME", "")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    assert runpy.run_path(str(SETUP))["HOME"] == toolkit


def test_a_toolkit_without_headers(monkeypatch, tmp_path):
    written_script(tmp_path / "bin" / "nvcc", "true")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    reason = runpy.run_path(str(SETUP))["why_no_cuda"]()
    assert reason == f"there is no cuda_runtime.h in the CUDA toolkit {tmp_path}"
