"""What `metadnas profile` does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from metadnas_ext.config import Config
from metadnas_ext.errors import ConfigError
from metadnas_ext.federated.federation import configured_shape, load_images
from metadnas_ext.profiling.measure import Told, profile
from metadnas_ext.report.tables import Grid
from metadnas_ext.space import DeviceProfile, NetworkShape, Part, cheapest_cost, dearest_cost
from metadnas_ext.space.latency import timed

MOST_ERROR = 0.25
"""Median relative error of whole networks above which the command warns; quiet machines: 0.1."""


def run(
    config: Config,
    out: Path,
    console: Console,
    images: tuple[int, int] | None,
    batch: int,
    threads: int | None,
    repeats: int,
    networks: int,
) -> DeviceProfile:
    """Measures, writes `out` and prints a summary.

    `images`: classes and channels of the images, of `data.image_size`; None: those of the dataset.
    `networks`: how many whole networks to compare with the prediction. Raises ConfigError before
    measuring if `out` cannot be written.
    """
    if out.is_dir() or not out.parent.is_dir():
        raise ConfigError(f"--out {out}: expected a file in a folder that exists")
    shape = _shape(config, images)
    with _bar(console) as progress:
        measured = profile(
            shape,
            batch=batch,
            threads=threads,
            repeats=repeats,
            check=networks,
            progress=progress,
        )
    try:
        measured.save(out)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from None
    _summarise(measured, out, console)
    return measured


def _shape(config: Config, images: tuple[int, int] | None) -> NetworkShape:
    if images is None:
        store = load_images(config)
        classes, size, channels = len(store.classes), store.image_size, store.channels
        return timed(configured_shape(config, classes, size, channels))
    if config.data.image_size is None:
        raise ConfigError("--classes needs --image-size")
    return timed(configured_shape(config, images[0], config.data.image_size, images[1]))


@contextmanager
def _bar(console: Console) -> Iterator[Told]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("measuring")
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _summarise(measured: DeviceProfile, out: Path, console: Console) -> None:
    """A table of candidates by place in the network, and what the profile says of whole ones."""
    names = measured.shape.candidates
    places = list(dict.fromkeys(part[1:] for part in measured.ms if part.name in names))
    rows = [
        (name, *(f"{1e3 * measured.ms[Part(name, *place)]:.0f}" for place in places))
        for name in names
    ]
    headers = [
        f"C{channels} {size}\N{MULTIPLICATION SIGN}{size}" + ("/2" if stride == 2 else "")
        for _, channels, size, stride in places
    ]
    console.print(Grid(("\N{MICRO SIGN}s an edge", *headers), tuple(rows)).rich())
    table = measured.cost_table(measured.shape)
    lines = [
        f"networks: {cheapest_cost(table):.4g} to {dearest_cost(table):.4g} ms, batch "
        f"{measured.batch}, {measured.threads} threads"
    ]
    if measured.check is not None:
        lines.append(_check_line(measured.check))
    for line in (*lines, f"device profile: {out}"):
        console.print(line, highlight=False, soft_wrap=True)


def _check_line(check: dict[str, float | None]) -> str:
    correlation, ratio, error = (check[name] for name in ("correlation", "ratio", "error"))
    parts = [f"{check['networks']:.0f} whole networks: measured {ratio:.2f} of the prediction"]
    parts.append(f"median error {100 * (error or math.nan):.0f} %")
    if correlation is not None:
        parts.append(f"correlation {correlation:.2f}")
    if (error or math.nan) > MOST_ERROR:
        parts.append("too far off for budgets: measure again while nothing else runs here")
    return ", ".join(parts)
