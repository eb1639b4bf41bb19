"""A source distribution holds everything that building and testing takes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import metadnas_ext

ROOT = Path(__file__).parents[1]
BUILT = shutil.ignore_patterns(".*", "__pycache__", "*.so", "build", "dist", "*.egg-info", "runs")
FOLDERS = ("csrc", "metadnas_ext", "tests", "bench", "docs", "examples")


def test_source_distribution_is_whole(tmp_path: Path) -> None:
    for needed in ("setuptools", "pybind11"):
        pytest.importorskip(needed, reason=f"{needed} is not installed (extra test)")
    tree = tmp_path / "tree"
    shutil.copytree(ROOT, tree, ignore=BUILT)
    (tree / "csrc" / "common" / "left.o").touch()
    command = [sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path / "dist")]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (archive,) = (tmp_path / "dist").iterdir()
    assert archive.name == f"metadnas_ext-{metadnas_ext.__version__}.tar.gz"
    with tarfile.open(archive) as file:
        names = {member.name.partition("/")[2] for member in file if member.isfile()}
    wanted = {
        str(path.relative_to(tree))
        for folder in FOLDERS
        for path in (tree / folder).rglob("*")
        if path.is_file() and path.suffix != ".o"
    }
    wanted |= {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "setup.py"}
    assert wanted <= names
    assert "csrc/common/left.o" not in names
    assert not any("__pycache__" in name for name in names)
