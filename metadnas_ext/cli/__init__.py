"""The `metadnas` command."""

from __future__ import annotations

from typing import Annotated

import typer

from metadnas_ext.cli.flower import flower
from metadnas_ext.cli.measuring import bench, bench_report, info, profile
from metadnas_ext.cli.results import export, report
from metadnas_ext.cli.running import compare, search
from metadnas_ext.cli.terminal import console, tolerate_encodings

app = typer.Typer(
    help="Federated differentiable architecture search: every client gets its own network, "
    "within its own compute budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from metadnas_ext import __version__

        console.print(f"metadnas_ext {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Options of `metadnas` itself."""


for command in (search, compare, flower, report, export, profile, bench, bench_report, info):
    app.command()(command)


def main() -> None:
    """Entry point of the `metadnas` command."""
    tolerate_encodings()
    app()
