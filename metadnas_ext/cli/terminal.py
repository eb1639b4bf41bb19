"""How commands print and end: what people read on stdout, what went wrong on stderr."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from metadnas_ext.errors import MetadnasError

WIDTH = None if sys.stdout.isatty() else 100  # columns of tables in a file
console = Console(width=WIDTH, markup=False)  # brackets in paths and names are brackets
errors = Console(stderr=True)

INTERRUPTED = 130


@contextmanager
def friendly() -> Iterator[None]:
    """Turns what a user can put right into one line and an exit code."""
    try:
        yield
    except MetadnasError as error:
        errors.print(f"[bold red]error:[/] {_plain(error)}", soft_wrap=True, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        # A second Ctrl-C ends the process at once: in what is left to do it would be a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        errors.print("interrupted", highlight=False)
        sys.exit(INTERRUPTED)


@contextmanager
def resumable(out: Path, command: str) -> Iterator[None]:
    """Says on Ctrl-C how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        hint = f"go on with: metadnas {command} --out {out} --resume"
        errors.print(hint, soft_wrap=True, highlight=False, markup=False)
        raise


def tolerate_encodings() -> None:
    """Prints ? for what the terminal's encoding lacks (LC_ALL=C: ±, α) in place of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _plain(error: Exception) -> str:
    from rich.markup import escape

    return escape(" ".join(str(error).split()))
