"""The `metadnas` command."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from metadnas_ext.config import Config, load_file
from metadnas_ext.errors import ConfigError, MetadnasError
from metadnas_ext.imports import import_all
from metadnas_ext.presets import PRESETS

if TYPE_CHECKING:
    from metadnas_ext.federated.federation import Federation
    from metadnas_ext.federated.runner import Observer

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
    tensorboard: bool


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
    tensorboard: TensorBoard = False,
) -> Request:
    """The options of search and compare."""
    flags = {KEYS[name]: value for name, value in locals().items() if name in KEYS}
    given = {key: value for key, value in flags.items() if value is not None}
    return Request(given, preset, config, set_ or [], import_ or [], out, resume, tensorboard)


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
        typer.Option(
            help="Comma-separated, or all; default meta_dnas,fedavg,fedavg_ft,darts (Table 1)."
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Comma-separated: a run for each seed, below --out, and one table."),
    ] = None,
    target: Target = None,
) -> None:
    """Compare Meta-DNAS with its rivals on the same clients, as the paper's Table 1.

    Further rivals: fedavg_head, local_only, per_fedavg, ditto, shared_alpha, random.

    Prints the table and writes it to --out as comparison.csv, .json and .md. Runs made one by one
    are combined by `metadnas report RUN RUN ...`.
    """
    names = None if methods is None else [name.strip() for name in methods.split(",")]
    _run("compare", names, request, seeds, target)


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN", help="Run folders of one configuration, or the folder of all seeds."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Where to write; default RUN/report.")] = None,
    target: Target = None,
) -> None:
    """Write a report: one HTML page, and Markdown with pictures.

    Curves, client bars, cells and tables of a run, or of several seeds combined.

    The table of methods also as CSV and JSON.
    """
    with _friendly():
        from metadnas_ext.report.build import build_report
        from metadnas_ext.report.study import load_study

        if out is None and len(runs) > 1:
            raise ConfigError("a report of several runs needs --out, the folder to write it to")
        for path in build_report(load_study(*runs), out or runs[0] / "report", target):
            console.print(path, soft_wrap=True, highlight=False)


@app.command()
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
    with _friendly():
        from metadnas_ext import models
        from metadnas_ext.export import SUFFIXES, export_model

        import_all(import_ or [])
        net, card = models.load(models.find(run, client, method))
        target = out or Path(f"{method}-client-{client}{SUFFIXES.get(format_, '')}")
        path = export_model(net, card, target, format_)
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


def _run(
    command: str,
    wanted: list[str] | None,
    request: Request,
    seeds: str | None = None,
    target: float | None = None,
) -> None:
    # Heavy imports here, so that --help and typing errors answer at once.
    import torch

    from metadnas_ext.federated import runner
    from metadnas_ext.federated.federation import Federation

    with _friendly():
        import_all(request.imports)
        out, configs, methods = _settled(command, wanted, request, seeds, target)
        # Sums in PyTorch's own products depend on the number of threads: a run keeps its number.
        threads = configs[0][1].run.threads or torch.get_num_threads()
        runs = [(f, config.updated({"run.threads": threads})) for f, config in configs]
        torch.set_num_threads(threads)
        # All of them before anything is written; the first is built last and goes on.
        for _, config in reversed(runs if not request.resume else runs[:1]):
            federation = Federation.build(config)
        if not request.resume:
            for folder, config in runs:
                runner.create_run(folder, config, methods)
        with _resumable(out, command):
            for number, (folder, config) in enumerate(runs):
                if number:
                    federation = Federation.build(config)
                _run_one(folder, federation, methods, request.tensorboard)
        _conclude(command, out, target)


def _run_one(folder: Path, federation: Federation, methods: list[str], tensorboard: bool) -> None:
    """One run to its end, shown on the terminal and, if asked, to TensorBoard."""
    from metadnas_ext.federated.runner import Runner
    from metadnas_ext.observers import Observers, TensorBoardLog
    from metadnas_ext.progress import Display

    with ExitStack() as stack:
        observers: list[Observer] = [stack.enter_context(Display(console, federation, folder))]
        if tensorboard:
            observers.append(stack.enter_context(TensorBoardLog(folder)))
        Runner(federation, methods, folder, Observers(observers)).run()


def _conclude(command: str, out: Path, target: float | None) -> None:
    """Prints the final tables and, of a comparison, writes them."""
    from metadnas_ext.progress import print_summary
    from metadnas_ext.report.comparison import compare, write_comparison
    from metadnas_ext.report.markdown import comparison_tables
    from metadnas_ext.report.study import load_study

    study = load_study(out)
    comparison = compare(study, target)
    print_summary(console, study, comparison)
    if command == "compare":
        write_comparison(comparison, comparison_tables(comparison), out)
    console.print(f"run folder: {out}", highlight=False, soft_wrap=True)


def _settled(
    command: str,
    wanted: list[str] | None,
    request: Request,
    seeds: str | None,
    target: float | None,
) -> tuple[Path, list[tuple[Path, Config]], list[str]]:
    """The folder, (run folder, configuration) of each seed, methods (wanted None: Table 1's).

    Raises on whatever is wrong with them.
    """
    from metadnas_ext.extras import require
    from metadnas_ext.federated import runner
    from metadnas_ext.methods import METHODS, TABLE_1
    from metadnas_ext.report.comparison import check_target

    if wanted == ["all"]:
        wanted = list(METHODS)
    unknown = [name for name in wanted or [] if name not in METHODS]
    if unknown:
        raise ConfigError(f"unknown method {unknown[0]!r}; known: {', '.join(METHODS)}")
    check_target(target)
    if request.tensorboard:
        require("tensorboard", "tensorboard")
    from_file = load_file(request.config) if request.config else {}
    values = from_file | request.flags | _assignments(request.assignments)
    numbers = None if seeds is None else _seeds(seeds, values)
    if request.resume:
        return _settled_resume(request.out, values, wanted, numbers)
    config = _preset(request.preset).updated(values)
    out = request.out or _free_folder(command, config.data.dataset)
    runner.check_free(out)
    return out, _seeded(out, config, numbers), wanted or list(TABLE_1)


def _seeds(text: str, values: dict[str, Any]) -> list[int]:
    """The numbers of --seeds, ascending."""
    if "run.seed" in values:
        raise ConfigError(f"--seeds is {text!r} and run.seed is given too; give one of them")
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len({*map(int, parts)}) < len(parts):
        raise ConfigError(f"--seeds is {text!r}, expected different whole numbers, as in 0,1,2")
    return sorted(map(int, parts))


def _seeded(out: Path, config: Config, seeds: list[int] | None) -> list[tuple[Path, Config]]:
    from metadnas_ext.report.study import SEED_FOLDER

    if seeds is None:
        return [(out, config)]
    return [(out / SEED_FOLDER.format(s), config.updated({"run.seed": s})) for s in seeds]


def _settled_resume(
    out: Path | None, values: dict[str, Any], wanted: list[str] | None, seeds: list[int] | None
) -> tuple[Path, list[tuple[Path, Config]], list[str]]:
    """As `_settled`, of the run or the runs in `out`."""
    from metadnas_ext.federated import runner
    from metadnas_ext.report.study import run_folders

    if out is None:
        raise ConfigError("--resume needs --out, the run folder to go on with")
    runs, methods = [], wanted or []
    for folder in run_folders(out):
        config, methods = _resumed(runner.load_config(folder), values, wanted)
        runs.append((folder, config))
    found = [config.run.seed for _, config in runs]
    if seeds is not None and found != seeds:
        raise ConfigError(f"{out} holds the seeds {found}; given: {seeds}")
    return out, runs, methods


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
