"""The `metadnas` command."""

from __future__ import annotations

import typer

from metadnas_ext.cli.flower import flower
from metadnas_ext.cli.measuring import bench, bench_report, info, profile
from metadnas_ext.cli.results import export, report
from metadnas_ext.cli.running import compare, search

app = typer.Typer(
    help="Federated differentiable architecture search: every client gets its own network, "
    "within its own compute budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (search, compare, flower, report, export, profile, bench, bench_report, info):
    app.command()(command)


def main() -> None:
    """Entry point of the `metadnas` command."""
    app()
