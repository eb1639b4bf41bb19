"""Each test in an empty folder, and a finished run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from metadnas_ext.config import Config
from metadnas_ext.federated.federation import Federation

from ..federated._tiny import TINY, run_in


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder of each test; a run folder that nobody asked for would appear in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")  # wide enough for whole names in tables


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a finished compare run with two methods."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_in(folder, Federation.build(Config().updated(TINY)), ["fedavg", "fedavg_ft"])
    torch.set_num_threads(threads)
    yield folder
    assert (folder / "results.json").exists()
