"""Files that are either whole or not there, and folders that one process at a time writes to."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metadnas_ext.errors import RunError

LOCK = ".lock"


def write_atomic(path: Path, data: bytes) -> None:
    """Writes beside `path`, flushes, renames: a crash leaves the old file or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, data: Any) -> None:
    """Strict JSON, written atomically."""
    text = json.dumps(data, indent=2, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A full disk or a folder that is read-only is not a bug: RunError."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror or error}") from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of `folder` while it is held; makes the folder if need be.

    The kernel lets go of the lock however the process ends. RunError if another one holds it, or if
    the folder cannot be made.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _lock(path)
    except OSError as error:
        raise RunError(f"cannot use the folder {folder}: {error.strerror}") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _lock(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed the file in between: then others lock another one.
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                os.ftruncate(handle, 0)
                os.write(handle, f"{os.getpid()}\n".encode())
                return handle
        except BlockingIOError:
            owner = os.read(handle, 20).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise RunError(
                f"{path.parent} is in use by another process (number {owner}); wait for it or "
                f"stop it"
            ) from None
        except OSError:
            os.close(handle)
            raise
        os.close(handle)
