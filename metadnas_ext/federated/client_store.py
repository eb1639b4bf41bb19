"""What clients keep between rounds, on disk, by client and round."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from torch import Tensor

from metadnas_ext.errors import RunError
from metadnas_ext.federated.packing import pack, unpack
from metadnas_ext.files import write_atomic

NEVER = -1
"""The round of a client that has not taken part."""


class ClientStore:
    """Rows of clients of one run and one training, below `folder`.

    A client's state is that behind a round. The server says from which round's state a client goes
    on: the last one in which its reply counted. So both that state and the one made since are kept,
    and a round that is asked for again, or whose reply was lost, starts where it had started.
    """

    def __init__(self, folder: Path, run: str, training: str) -> None:
        if not re.fullmatch(r"[0-9a-f]{8,64}", run) or not re.fullmatch(r"\w+", training):
            raise RunError(f"run {run!r} of {training!r}: expected hexadecimal digits and a word")
        self.run_folder = folder / run
        self._folder = self.run_folder / training

    def load(self, client: int, behind: int) -> dict[str, Tensor]:
        """Rows (width) by name, as they were behind a round. RunError if they are not there."""
        path = self._path(client, behind)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror}") from None
        digest, body = data[:32], data[32:]
        if hashlib.sha256(body).digest() != digest:
            raise RunError(f"{path} is damaged: it does not match its hash")
        return unpack(body)[1]

    def save(self, client: int, behind: int, rows: dict[str, Tensor], before: int) -> None:
        """Keeps rows behind a round that the client started as it was behind round `before`."""
        path = self._path(client, behind)
        path.parent.mkdir(parents=True, exist_ok=True)
        body = pack({"client": client, "round": behind}, rows)
        write_atomic(path, hashlib.sha256(body).digest() + body)
        for old in path.parent.glob("*.state"):
            if old.stem.isdigit() and int(old.stem) not in (before, behind):
                old.unlink(missing_ok=True)

    def _path(self, client: int, behind: int) -> Path:
        return self._folder / str(client) / f"{behind:08d}.state"
