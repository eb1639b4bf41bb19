"""`metadnas search` and `compare`: runs, one or one a seed, from their folders to their tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metadnas_ext.cli.options import Request, Target, with_shared_options
from metadnas_ext.cli.settling import settled
from metadnas_ext.cli.terminal import console, friendly, resumable
from metadnas_ext.imports import import_all

if TYPE_CHECKING:
    from metadnas_ext.federated.federation import Federation
    from metadnas_ext.federated.runner import Observer


@with_shared_options
def search(request: Request) -> None:
    """Search a network for every client with Meta-DNAS.

    Without flags: ten clients on scikit-learn's digits, in a few minutes on a laptop.
    """
    _run("search", ["meta_dnas"], request)


@with_shared_options
def compare(
    request: Request,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated, or all; default Table 1's: meta_dnas, fedavg, fedavg_ft, darts."
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Comma-separated: a run for each seed, below --out, and one table."),
    ] = None,
    target: Target = None,
) -> None:
    """Compare Meta-DNAS with its rivals on the same clients, as the paper's Table 1.

    Further rivals: fedavg_head, fedper, local_only, per_fedavg, ditto, shared_alpha, random.

    Prints the table and writes it to --out as comparison.csv, .json and .md. Runs made one by one
    are combined by `metadnas report RUN RUN ...`.
    """
    names = None if methods is None else [name.strip() for name in methods.split(",")]
    _run("compare", names, request, seeds, target)


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
    from metadnas_ext.files import locked
    from metadnas_ext.methods import METHODS
    from metadnas_ext.placement import device_of, make_repeatable

    with friendly():
        import_all(request.imports)
        out, configs, methods = settled(command, wanted, request, seeds, target)
        # Sums in PyTorch's own products depend on the number of threads: a run keeps its number.
        threads = configs[0][1].run.threads or torch.get_num_threads()
        runs = [(f, config.updated({"run.threads": threads})) for f, config in configs]
        torch.set_num_threads(threads)
        make_repeatable(device_of(configs[0][1].run.device))
        # All of them before anything is written; the first is built last and goes on.
        for _, config in reversed(runs if not request.resume else runs[:1]):
            federation = Federation.build(config)
            for name in methods:
                METHODS[name](federation)  # what cannot run on it fails now and not after hours
        with ExitStack() as stack:
            for folder in dict.fromkeys((out, *(folder for folder, _ in runs))):
                stack.enter_context(locked(folder))
            if not request.resume:
                for folder, config in runs:
                    runner.create_run(folder, config, methods)
            with resumable(out, command):
                for number, (folder, config) in enumerate(runs):
                    if number:
                        federation = Federation.build(config)
                    _run_one(folder, federation, methods, request.tensorboard)
            conclude(command, out, target)


def _run_one(folder: Path, federation: Federation, methods: list[str], tensorboard: bool) -> None:
    """One run to its end, watched."""
    from metadnas_ext.federated.runner import Runner

    with watching(folder, federation, tensorboard) as observer:
        Runner(federation, methods, folder, observer).run()


@contextmanager
def watching(folder: Path, federation: Federation, tensorboard: bool) -> Iterator[Observer]:
    """Shows a run on the terminal and, if asked, to TensorBoard."""
    from metadnas_ext.observers import Observers, TensorBoardLog
    from metadnas_ext.progress import Display

    with ExitStack() as stack:
        observers: list[Observer] = [stack.enter_context(Display(console, federation, folder))]
        if tensorboard:
            observers.append(stack.enter_context(TensorBoardLog(folder)))
        yield Observers(observers)


def conclude(command: str, out: Path, target: float | None) -> None:
    """Prints the final tables and, of a comparison, writes them."""
    from metadnas_ext.files import writing
    from metadnas_ext.progress import print_summary
    from metadnas_ext.report.comparison import compare, write_comparison
    from metadnas_ext.report.markdown import comparison_tables
    from metadnas_ext.report.study import load_study

    study = load_study(out)
    comparison = compare(study, target)
    print_summary(console, study, comparison)
    if command == "compare":
        with writing(out):
            write_comparison(comparison, comparison_tables(comparison), out)
    console.print(f"run folder: {out}", highlight=False, soft_wrap=True)
