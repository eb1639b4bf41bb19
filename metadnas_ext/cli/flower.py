"""`metadnas flower`: a run over Flower, from its app folder to its tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metadnas_ext.cli.options import Request, with_shared_options
from metadnas_ext.cli.running import conclude, watching
from metadnas_ext.cli.settling import settled
from metadnas_ext.cli.terminal import console, friendly, resumable
from metadnas_ext.errors import ConfigError
from metadnas_ext.imports import import_all

if TYPE_CHECKING:
    from metadnas_ext.config import Config
    from metadnas_ext.flower.settings import FlowerSettings


@with_shared_options
def flower(
    request: Request,
    methods: Annotated[
        str | None, typer.Option(help="Comma-separated, or all; default meta_dnas.")
    ] = None,
    nodes: Annotated[int, typer.Option(help="Clients are dealt to as many nodes.")] = 2,
    app: Annotated[
        Path | None, typer.Option(help="App folder to write; default beside --out: <out>-app.")
    ] = None,
    simulate: Annotated[
        bool, typer.Option(help="Run it in Flower's simulation; --no-simulate: only write it.")
    ] = True,
) -> None:
    """Write a Flower app for a run and run it in simulation (docs/flower.md; extra flower).

    The same folder runs on other machines: flwr run, against a SuperLink with SuperNodes.
    """
    import torch

    from metadnas_ext.extras import require

    with friendly():
        require("flower", "flwr")
        from metadnas_ext.flower.engine import check_config
        from metadnas_ext.flower.scaffold import write_app
        from metadnas_ext.flower.settings import FlowerSettings

        import_all(request.imports)
        wanted = None if methods is None else [name.strip() for name in methods.split(",")]
        if wanted is None and not request.resume:
            wanted = ["meta_dnas"]
        if request.tensorboard and not simulate:
            raise ConfigError("--tensorboard is given, expected it without --no-simulate")
        out, ((_, config),), names = settled("flower", wanted, request, None, None)
        out = out.absolute()
        config = config.updated({"run.threads": config.run.threads or torch.get_num_threads()})
        settings = FlowerSettings(out, tuple(names), nodes)
        check_config(config, settings)
        folder = app or out.with_name(f"{out.name}-app")
        write_app(folder, settings, config)
        console.print(f"app folder: {folder}", highlight=False, soft_wrap=True)
        if simulate:
            with resumable(out, "flower"):
                _simulate(settings, config, folder / "clients", request.tensorboard)
            conclude("flower", out, None)


def _simulate(settings: FlowerSettings, config: Config, state: Path, tensorboard: bool) -> None:
    from metadnas_ext.federated.federation import Federation
    from metadnas_ext.flower.simulation import simulate

    with watching(settings.out, Federation.build(config), tensorboard) as observer:
        simulate(settings, config, state, observer)
