"""`metadnas profile`, `bench`, `bench-report` and `info`: about the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metadnas_ext.cli.options import (
    DEFAULT_PRESET,
    Channels,
    ConfigFile,
    DataDir,
    Dataset,
    ImageSize,
    Layers,
    Preset,
    Set,
    assignments,
    preset_of,
)
from metadnas_ext.cli.terminal import console, friendly
from metadnas_ext.config import load_file


def profile(
    out: Annotated[Path, typer.Option(help="The device profile, JSON.")],
    dataset: Dataset = None,
    data_dir: DataDir = None,
    image_size: ImageSize = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Classes; with --image-size no data is needed.")
    ] = None,
    image_channels: Annotated[
        int, typer.Option(min=1, help="Channels of the images, with --classes.")
    ] = 3,
    channels: Channels = None,
    layers: Layers = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of every part.")] = 15,
    check: Annotated[
        int, typer.Option(min=0, help="Whole networks to compare with the prediction.")
    ] = 8,
    preset: Preset = None,
    config: ConfigFile = None,
    set_: Set = None,
) -> None:
    """Measure what every candidate takes on this machine, in ms, for budget.devices.

    The networks are those of a search with the same options.
    """
    flags = {
        "data.dataset": dataset,
        "data.data_dir": data_dir,
        "data.image_size": image_size,
        "space.channels": channels,
        "space.layers": layers,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    with friendly():
        from metadnas_ext.profiling.command import run

        from_file = load_file(config) if config else {}
        values = from_file | given | assignments(set_ or [])
        settled = preset_of(preset or DEFAULT_PRESET).updated(values)
        images = None if classes is None else (classes, image_channels)
        run(settled, out, console, images, batch, threads, repeats, check)


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
    memory: Annotated[bool, typer.Option("--memory", help="Peak memory of a step.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:<n> or auto.")] = "cpu",
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
    with friendly():
        import torch

        from metadnas_ext.bench.command import list_cases, run
        from metadnas_ext.bench.device import bench_device
        from metadnas_ext.bench.measure import Settings
        from metadnas_ext.bench.registry import select

        if list_:
            list_cases(select(cases or (), full=True, large=True), console)
            return
        measured = bench_device(device)
        chosen = select(cases or (), full, large=measured.type == "cuda")
        if threads is not None:
            torch.set_num_threads(threads)
        settings = Settings(repeats, seconds, compile_, memory, tiny, str(measured))
        run(chosen, settings, out, console, resume=resume)


def bench_report(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Results; default bench/results/*.json.")
    ] = None,
    page: Annotated[Path, typer.Option(help="Gets all tables.")] = Path("docs/benchmarks.md"),
    readme: Annotated[Path, typer.Option(help="Gets the mixed operation.")] = Path("README.md"),
    pictures: Annotated[Path, typer.Option(help="Folder.")] = Path("docs/images"),
) -> None:
    """Put benchmark results into the documentation; run it where the repository is."""
    with friendly():
        from metadnas_ext.bench.docs import write_docs
        from metadnas_ext.errors import BenchmarkError

        found = files or sorted(Path("bench/results").glob("*.json"))
        if not found:
            raise BenchmarkError("bench/results holds no JSON; make some with metadnas bench --out")
        for path in write_docs(found, page, readme, pictures):
            console.print(path, soft_wrap=True, highlight=False)


def info() -> None:
    """Print what this installation was built with and runs on."""
    from metadnas_ext import __version__, build_info

    console.print(f"metadnas_ext {__version__}", highlight=False)
    for key, value in build_info().items():
        console.print(f"{key}: {value}", highlight=False)
