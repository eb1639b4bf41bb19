"""`metadnas report` and `export`: from run folders to what is read elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metadnas_ext.cli.options import Import, Target
from metadnas_ext.cli.terminal import console, friendly
from metadnas_ext.errors import ConfigError
from metadnas_ext.imports import import_all


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN", help="Run folders of one configuration, or the folder of all seeds."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Where to write; default RUN/report.")] = None,
    target: Target = None,
    variants: Annotated[
        bool,
        typer.Option("--variants", help="Settings differ: each run against the first one."),
    ] = False,
) -> None:
    """Write a report: one HTML page, and Markdown with pictures.

    Curves, client bars, cells and tables of a run, or of several seeds combined.

    The table of methods also as CSV and JSON.
    """
    with friendly():
        from metadnas_ext.report.build import build_report
        from metadnas_ext.report.study import load_study

        if out is None and len(runs) > 1:
            raise ConfigError("a report of several runs needs --out, the folder to write it to")
        study = load_study(*runs, variants=variants)
        for path in build_report(study, out or runs[0] / "report", target):
            console.print(path, soft_wrap=True, highlight=False)


def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    client: Annotated[int, typer.Argument(help="Whose network.")],
    method: Annotated[str, typer.Option(help="The method it ended with.")] = "meta_dnas",
    format_: Annotated[
        str, typer.Option("--format", help="torch (a torch.export program) or onnx.")
    ] = "torch",
    out: Annotated[
        Path | None, typer.Option(help="The file; default METHOD-client-CLIENT.pt2 or .onnx.")
    ] = None,
    import_: Import = None,
) -> None:
    """Write a client's final network for programs without this package."""
    with friendly():
        from metadnas_ext import models
        from metadnas_ext.export import SUFFIXES, export_model

        import_all(import_ or [])
        net, card = models.load(models.find(run, client, method))
        target = out or Path(f"{method}-client-{client}{SUFFIXES.get(format_, '')}")
        path = export_model(net, card, target, format_)
        console.print(path, soft_wrap=True, highlight=False)
