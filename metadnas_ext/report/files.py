"""Files that are either whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from metadnas_ext.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_SUFFIXES = (".png", ".svg")
DPI = 200


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes `path`'s place in one step.

    The temporary file keeps the suffix, because matplotlib chooses the format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a picture, PNG or SVG by the suffix. Raises ConfigError on another suffix."""
    file = Path(path)
    if file.suffix not in PICTURE_SUFFIXES:
        expected = " or ".join(PICTURE_SUFFIXES)
        raise ConfigError(f"a picture's name must end in {expected}, got {file.name!r}")
    with replacing(file) as temporary:
        # Without a date the same run gives the same picture.
        metadata = {"Date": None} if file.suffix == ".svg" else None
        figure.savefig(temporary, dpi=DPI, facecolor="white", metadata=metadata)
    return file
