"""Options of the commands, and the configuration that they ask for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from metadnas_ext.config import Config
from metadnas_ext.config_checks import did_you_mean
from metadnas_ext.errors import ConfigError
from metadnas_ext.presets import PRESETS

DEFAULT_PRESET = "quick"

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
        "dearest network on the client's device, above 1 units (docs/budgets.md)."
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="Where to compute: cpu (default), cuda, cuda:<n>, or auto: a GPU if any."),
]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Preset = Annotated[
    str | None,
    typer.Option(help=f"Where to start from: {', '.join(PRESETS)}; default {DEFAULT_PRESET}."),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML file with sections and keys as config.json.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any parameter, e.g. --set client.alpha_lr=0.02 (repeatable)."),
]
Import = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        help="Module or .py file that registers primitives (repeatable); to go on or export, too.",
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="Run folder; default: the next one free below runs/.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Log scalars for TensorBoard in the run folder.")
]
Target = Annotated[
    float | None,
    typer.Option(
        help="Validation accuracy (0 to 1) to count rounds to; default: the highest that every "
        "method reaches."
    ),
]

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
    "device": "run.device",
    "seed": "run.seed",
}


@dataclass(frozen=True)
class Request:
    """What was asked of search or compare: configuration keys given by flags, and the rest."""

    flags: dict[str, Any]
    preset: str | None
    config: Path | None
    assignments: list[str]
    imports: list[str]
    out: Path | None
    resume: bool
    tensorboard: bool


def shared_options(
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
    device: Device = None,
    seed: Seed = None,
    preset: Preset = None,
    config: ConfigFile = None,
    set_: Set = None,
    import_: Import = None,
    out: Out = None,
    resume: Resume = False,
    tensorboard: TensorBoard = False,
) -> Request:
    """The options of search and compare."""
    flags = {KEYS[name]: value for name, value in locals().items() if name in KEYS}
    given = {key: value for key, value in flags.items() if value is not None}
    return Request(given, preset, config, set_ or [], import_ or [], out, resume, tensorboard)


def with_shared_options(body: Callable[..., None]) -> Callable[..., None]:
    """A command with the shared options, as `body`'s `request`, and then those of `body`."""
    shared = inspect.signature(shared_options, eval_str=True).parameters
    all_own = inspect.signature(body, eval_str=True).parameters.values()
    own = [p for p in all_own if p.name != "request"]

    @functools.wraps(body)
    def command(**values: Any) -> None:
        request = shared_options(**{name: values.pop(name) for name in shared})
        body(request=request, **values)

    # typer reads both.
    command.__signature__ = inspect.Signature([*shared.values(), *own])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*shared.values(), *own)}
    return command


def preset_of(name: str) -> Config:
    if name not in PRESETS:
        raise ConfigError(
            f"--preset is {name!r}, expected one of {', '.join(PRESETS)}"
            f"{did_you_mean(name, PRESETS)}"
        )
    return PRESETS[name]


def assignments(texts: list[str]) -> dict[str, Any]:
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text!r}: expected section.name=value")
        values[key.strip()] = value.strip()
    return values
