"""The `metadnas` command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from metadnas_ext.config import Config, load_file
from metadnas_ext.errors import ConfigError, MetadnasError
from metadnas_ext.presets import PRESETS

app = typer.Typer(
    help="Federated differentiable architecture search: every client gets its own network, "
    "within its own compute budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# What people read goes to stdout, what went wrong to stderr.
console = Console()
errors = Console(stderr=True)

INTERRUPTED = 130

# Flags that set one configuration key each.
Dataset = Annotated[
    str | None, typer.Option(help="digits, cifar10, cifar100, imagenet or imagefolder.")
]
DataDir = Annotated[
    str | None, typer.Option(help="Folder of the dataset (imagefolder: <class>/<image>).")
]
Download = Annotated[bool | None, typer.Option(help="Download cifar10 or cifar100.")]
ImageSize = Annotated[int | None, typer.Option(help="Resize images to this many pixels.")]
MaxImages = Annotated[int | None, typer.Option(help="Use a stratified subset of this size.")]
Clients = Annotated[int | None, typer.Option(help="Number of clients.")]
Partition = Annotated[str | None, typer.Option(help="dirichlet, pathological or iid.")]
Dirichlet = Annotated[float | None, typer.Option(help="Concentration; smaller is more skewed.")]
Rounds = Annotated[int | None, typer.Option(help="Federated rounds.")]
PerRound = Annotated[int | None, typer.Option(help="Clients sampled a round.")]
Cohort = Annotated[int | None, typer.Option(help="Clients trained in one batch of kernels.")]
Epochs = Annotated[int | None, typer.Option(help="Local epochs a round.")]
BatchSize = Annotated[int | None, typer.Option(help="Local batch size.")]
Channels = Annotated[int | None, typer.Option(help="Channels of the first cells.")]
Layers = Annotated[int | None, typer.Option(help="Cells of the network.")]
Budget = Annotated[
    str | None,
    typer.Option(
        help="Compute budgets, comma-separated, round-robin over clients: up to 1 a share of the "
        "dearest network, above 1 multiply-accumulates (or parameters)."
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Preset = Annotated[str, typer.Option(help=f"Where to start from: {', '.join(PRESETS)}.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file with sections and keys as config.json.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any parameter, e.g. --set client.alpha_lr=0.02 (repeatable)."),
]
Out = Annotated[Path | None, typer.Option(help="Run folder; default runs/<command>-<dataset>-<n>.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]

KEYS = {
    "dataset": "data.dataset",
    "data_dir": "data.data_dir",
    "download": "data.download",
    "image_size": "data.image_size",
    "max_images": "data.max_images",
    "clients": "data.clients",
    "partition": "data.partition",
    "dirichlet": "data.dirichlet",
    "rounds": "server.rounds",
    "clients_per_round": "server.clients_per_round",
    "cohort": "server.cohort",
    "epochs": "client.epochs",
    "batch_size": "client.batch_size",
    "channels": "space.channels",
    "layers": "space.layers",
    "budget": "budget.levels",
    "seed": "run.seed",
}


@app.command()
def search(
    dataset: Dataset = None,
    data_dir: DataDir = None,
    download: Download = None,
    image_size: ImageSize = None,
    max_images: MaxImages = None,
    clients: Clients = None,
    partition: Partition = None,
    dirichlet: Dirichlet = None,
    rounds: Rounds = None,
    clients_per_round: PerRound = None,
    cohort: Cohort = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    channels: Channels = None,
    layers: Layers = None,
    budget: Budget = None,
    seed: Seed = None,
    preset: Preset = "quick",
    config: ConfigFile = None,
    set_: Set = None,
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Search a network for every client with Meta-DNAS.

    Without flags: ten clients on scikit-learn's digits, in a few minutes on a laptop.
    """
    flags = {KEYS[k]: v for k, v in locals().items() if k in KEYS and v is not None}
    with _friendly():
        _run("search", ["meta_dnas"], preset, config, set_, flags, out, resume)


@app.command()
def compare(
    dataset: Dataset = None,
    data_dir: DataDir = None,
    download: Download = None,
    image_size: ImageSize = None,
    max_images: MaxImages = None,
    clients: Clients = None,
    partition: Partition = None,
    dirichlet: Dirichlet = None,
    rounds: Rounds = None,
    clients_per_round: PerRound = None,
    cohort: Cohort = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    channels: Channels = None,
    layers: Layers = None,
    budget: Budget = None,
    seed: Seed = None,
    preset: Preset = "quick",
    config: ConfigFile = None,
    set_: Set = None,
    out: Out = None,
    resume: Resume = False,
    methods: Annotated[
        str | None,
        typer.Option(help="Comma-separated; default meta_dnas,fedavg,fedavg_ft,darts."),
    ] = None,
) -> None:
    """Compare Meta-DNAS with its rivals on the same clients, as the paper's Table 1."""
    flags = {KEYS[k]: v for k, v in locals().items() if k in KEYS and v is not None}
    with _friendly():
        names = None if methods is None else [name.strip() for name in methods.split(",")]
        _run("compare", names, preset, config, set_, flags, out, resume)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; default RUN/report.")] = None,
) -> None:
    """Draw a run's curves, client bars and cells, and write its tables as Markdown."""
    with _friendly():
        from metadnas_ext.report.build import build_report

        for path in build_report(run, out):
            console.print(path, soft_wrap=True, highlight=False)


@app.command()
def info() -> None:
    """Print what this installation was built with and runs on."""
    from metadnas_ext import __version__, build_info

    console.print(f"metadnas_ext {__version__}", highlight=False)
    for key, value in build_info().items():
        console.print(f"{key}: {value}", highlight=False)


def main() -> None:
    """Entry point of the `metadnas` command."""
    app()


def _run(
    command: str,
    methods: list[str] | None,
    preset: str,
    config_file: Path | None,
    assignments: list[str] | None,
    flags: dict[str, Any],
    out: Path | None,
    resume: bool,
) -> None:
    # Heavy imports here, so that --help and typing errors answer at once.
    from metadnas_ext.federated import runner
    from metadnas_ext.federated.federation import Federation
    from metadnas_ext.methods import METHODS
    from metadnas_ext.progress import Display

    unknown = [name for name in methods or () if name not in METHODS]
    if unknown:
        raise ConfigError(f"unknown method {unknown[0]!r}; known: {', '.join(METHODS)}")
    values = (load_file(config_file) if config_file else {}) | flags | _assignments(assignments)
    if resume:
        if out is None:
            raise ConfigError("--resume needs --out, the run folder to go on with")
        config, methods = _resumed(runner.load_config(out), values, methods)
    else:
        methods = methods or list(METHODS)
        config = _preset(preset).updated(values)
        out = out or _free_folder(command, config.data.dataset)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            runner.create_run(out, config, methods)  # raises: something is there
    federation = Federation.build(config)
    if not resume:
        runner.create_run(out, config, methods)
    try:
        with Display(console, federation, out) as display:
            run = runner.Runner(federation, methods, out, display)
            results = run.run()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; go on with --resume --out {out}") from None
    display.summarise(results, run.seconds(), run.traffic())


def _preset(name: str) -> Config:
    if name not in PRESETS:
        raise ConfigError(f"--preset is {name!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _assignments(texts: list[str] | None) -> dict[str, Any]:
    values = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text!r}: expected section.name=value")
        values[key.strip()] = value.strip()
    return values


def _resumed(
    saved: tuple[Config, list[str]], values: dict[str, Any], methods: list[str] | None
) -> tuple[Config, list[str]]:
    """The saved configuration and methods, if what was given now agrees with them."""
    config, saved_methods = saved
    differences = config.differences(config.updated(values))
    if differences:
        raise ConfigError(
            f"the run was started with another configuration (saved, given): "
            f"{'; '.join(differences)}"
        )
    if methods is not None and methods != saved_methods:
        raise ConfigError(f"the run holds {', '.join(saved_methods)}; given: {', '.join(methods)}")
    return config, saved_methods


def _free_folder(command: str, dataset: str) -> Path:
    number = 0
    while (folder := Path("runs") / f"{command}-{dataset}-{number}").exists():
        number += 1
    return folder


@contextmanager
def _friendly() -> Iterator[None]:
    """Turns what a user can put right into one line and an exit code."""
    try:
        yield
    except MetadnasError as error:
        errors.print(f"[bold red]error:[/] {_plain(error)}", soft_wrap=True, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        errors.print(str(interrupt) or "interrupted", soft_wrap=True, markup=False, highlight=False)
        sys.exit(INTERRUPTED)


def _plain(error: Exception) -> str:
    from rich.markup import escape

    return escape(" ".join(str(error).split()))
