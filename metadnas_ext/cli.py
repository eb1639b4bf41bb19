"""The `metadnas` command."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
WIDTH = None if sys.stdout.isatty() else 100  # columns of tables in a file
console = Console(width=WIDTH)
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
Import = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        help="Module or .py file that registers primitives (repeatable); for --resume too.",
    ),
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


@dataclass(frozen=True)
class Request:
    """What was asked of search or compare: configuration keys given by flags, and the rest."""

    flags: dict[str, Any]
    preset: str
    config: Path | None
    assignments: list[str]
    imports: list[str]
    out: Path | None
    resume: bool


def _shared_options(
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
    import_: Import = None,
    out: Out = None,
    resume: Resume = False,
) -> Request:
    """The options of search and compare."""
    flags = {KEYS[name]: value for name, value in locals().items() if name in KEYS}
    given = {key: value for key, value in flags.items() if value is not None}
    return Request(given, preset, config, set_ or [], import_ or [], out, resume)


def _with_shared_options(body: Callable[..., None]) -> Callable[..., None]:
    """A command with the shared options, as `body`'s `request`, and then those of `body`."""
    shared = inspect.signature(_shared_options, eval_str=True).parameters
    all_own = inspect.signature(body, eval_str=True).parameters.values()
    own = [p for p in all_own if p.name != "request"]

    @functools.wraps(body)
    def command(**values: Any) -> None:
        request = _shared_options(**{name: values.pop(name) for name in shared})
        body(request=request, **values)

    # typer reads both.
    command.__signature__ = inspect.Signature([*shared.values(), *own])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*shared.values(), *own)}
    return command


@app.command()
@_with_shared_options
def search(request: Request) -> None:
    """Search a network for every client with Meta-DNAS.

    Without flags: ten clients on scikit-learn's digits, in a few minutes on a laptop.
    """
    _run("search", ["meta_dnas"], request)


@app.command()
@_with_shared_options
def compare(
    request: Request,
    methods: Annotated[
        str | None,
        typer.Option(help="Comma-separated; default meta_dnas,fedavg,fedavg_ft,darts."),
    ] = None,
) -> None:
    """Compare Meta-DNAS with its rivals on the same clients, as the paper's Table 1."""
    names = None if methods is None else [name.strip() for name in methods.split(",")]
    _run("compare", names, request)


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
def bench(
    cases: Annotated[
        list[str] | None,
        typer.Argument(help="Cases, groups or patterns ('aggregation/*'); default: the quick set."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the cases and stop.")] = False,
    full: Annotated[bool, typer.Option("--full", help="All cases, for an hour or so.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of a variant at most.")] = 9,
    seconds: Annotated[float, typer.Option(min=0, help="Time to measure a case, about.")] = 6.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch.")] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compare with torch.compile too; minutes a case.")
    ] = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="Peak memory of a step, each in its own process.")
    ] = False,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="At tiny sizes: only whether everything works.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the figures as JSON, after every case.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out the cases that --out holds already.")
    ] = False,
) -> None:
    """Measure this machine: the package beside DARTS in ordinary PyTorch.

    Results are checked before anything is timed. Without arguments a quick set, in three minutes.
    """
    with _friendly():
        import torch

        from metadnas_ext.bench.command import list_cases, run
        from metadnas_ext.bench.measure import Settings
        from metadnas_ext.bench.registry import select

        chosen = select(cases or (), full=full or list_)
        if list_:
            list_cases(chosen, console)
            return
        if threads is not None:
            torch.set_num_threads(threads)
        settings = Settings(repeats, seconds, compile_, memory, tiny)
        run(chosen, settings, out, console, resume=resume)


@app.command()
def bench_report(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Results; default bench/results/*.json.")
    ] = None,
    page: Annotated[Path, typer.Option(help="Gets all tables.")] = Path("docs/benchmarks.md"),
    readme: Annotated[Path, typer.Option(help="Gets the mixed operation.")] = Path("README.md"),
    pictures: Annotated[Path, typer.Option(help="Folder.")] = Path("docs/images"),
) -> None:
    """Put benchmark results into the documentation; run it where the repository is."""
    with _friendly():
        from metadnas_ext.bench.docs import write_docs
        from metadnas_ext.errors import BenchmarkError

        found = files or sorted(Path("bench/results").glob("*.json"))
        if not found:
            raise BenchmarkError("bench/results holds no JSON; make some with metadnas bench --out")
        for path in write_docs(found, page, readme, pictures):
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


def _run(command: str, wanted: list[str] | None, request: Request) -> None:
    # Heavy imports here, so that --help and typing errors answer at once.
    import torch

    from metadnas_ext.federated import runner
    from metadnas_ext.federated.federation import Federation
    from metadnas_ext.progress import Display

    with _friendly():
        for module in request.imports:
            _import(module)
        out, config, methods = _settled(command, wanted, request)
        # Sums in PyTorch's own products depend on the number of threads: a run keeps its number.
        threads = config.run.threads or torch.get_num_threads()
        config = config.updated({"run.threads": threads})
        torch.set_num_threads(threads)
        federation = Federation.build(config)
        if not request.resume:
            runner.create_run(out, config, methods)
        with _resumable(out, command), Display(console, federation, out) as display:
            run = runner.Runner(federation, methods, out, display)
            results = run.run()
        display.summarise(results, run.seconds(), run.traffic())


def _settled(
    command: str, wanted: list[str] | None, request: Request
) -> tuple[Path, Config, list[str]]:
    """Run folder, configuration and methods (None: all); raises on whatever is wrong with them."""
    from metadnas_ext.federated import runner
    from metadnas_ext.methods import METHODS

    unknown = [name for name in wanted or [] if name not in METHODS]
    if unknown:
        raise ConfigError(f"unknown method {unknown[0]!r}; known: {', '.join(METHODS)}")
    from_file = load_file(request.config) if request.config else {}
    values = from_file | request.flags | _assignments(request.assignments)
    if request.resume:
        if request.out is None:
            raise ConfigError("--resume needs --out, the run folder to go on with")
        saved = runner.load_config(request.out)
        return request.out, *_resumed(saved, values, wanted)
    config = _preset(request.preset).updated(values)
    out = request.out or _free_folder(command, config.data.dataset)
    runner.check_free(out)
    return out, config, wanted or list(METHODS)


def _import(name: str) -> None:
    """Runs a module of the user's, by its dotted name or its file, for what it registers."""
    import importlib
    import importlib.util

    try:
        if not name.endswith(".py"):
            importlib.import_module(name)
            return
        own = f"metadnas_import_{Path(name).stem}"  # no name of a module that exists
        spec = importlib.util.spec_from_file_location(own, name)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[own] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[own])
    except MetadnasError:
        raise
    except Exception as error:
        raise ConfigError(f"--import {name}: {type(error).__name__}: {error}") from error


def _preset(name: str) -> Config:
    if name not in PRESETS:
        raise ConfigError(f"--preset is {name!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _assignments(texts: list[str]) -> dict[str, Any]:
    values = {}
    for text in texts:
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
    except KeyboardInterrupt:
        errors.print("interrupted", highlight=False)
        sys.exit(INTERRUPTED)


@contextmanager
def _resumable(out: Path, command: str) -> Iterator[None]:
    """Says on Ctrl-C how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        hint = f"go on with: metadnas {command} --out {out} --resume"
        errors.print(hint, soft_wrap=True, highlight=False, markup=False)
        raise


def _plain(error: Exception) -> str:
    from rich.markup import escape

    return escape(" ".join(str(error).split()))
