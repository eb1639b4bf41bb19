"""One process at a time in a run folder."""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from metadnas_ext.errors import RunError
from metadnas_ext.files import LOCK, locked

processes = multiprocessing.get_context("fork")  # nothing is imported again


def hold(folder: Path, told: Connection) -> None:
    with locked(folder):
        told.send("held")
        time.sleep(600)


def enter_often(folder: Path) -> None:
    """Fails if it is ever not alone inside."""
    entered, inside, end = 0, folder / "inside", time.monotonic() + 30
    while entered < 200 and time.monotonic() < end:
        try:
            with locked(folder):
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                inside.unlink()
                entered += 1
        except RunError:
            pass
    assert entered


def test_another_process_is_kept_out_until_the_holder_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    here, there = processes.Pipe()
    holder = processes.Process(target=hold, args=(folder, there))
    holder.start()
    assert here.poll(60)
    message = rf"{folder} is in use by another process \(number {holder.pid}\)"
    for _ in range(2):
        with pytest.raises(RunError, match=message), locked(folder):
            raise AssertionError("two processes hold one lock")
    holder.kill()
    holder.join()
    assert (folder / LOCK).exists()  # what is left of a killed process locks nothing
    with locked(folder):
        assert (folder / LOCK).read_text() == f"{os.getpid()}\n"
    assert list(folder.iterdir()) == []


def test_not_twice_in_one_process_either(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(RunError, match=f"number {os.getpid()}"),
        locked(tmp_path),
    ):
        raise AssertionError("held twice")
    with locked(tmp_path):
        pass


def test_a_file_that_its_holder_removed_is_no_lock(tmp_path: Path) -> None:
    """Every holder removes the file, and others may have opened it before: still one at a time."""
    crowd = [processes.Process(target=enter_often, args=(tmp_path,)) for _ in range(4)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(60)
        assert process.exitcode == 0


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="cannot use the folder"), locked(tmp_path / "file" / "run"):
        pass
