"""Benchmark results in the documentation: tables between markers, and pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from metadnas_ext.bench.plot import plot_speedups
from metadnas_ext.bench.results import Results
from metadnas_ext.bench.tables import origin, sections
from metadnas_ext.errors import BenchmarkError
from metadnas_ext.files import write_atomic

END = "<!-- benchmarks: end -->"
ALL = "<!-- benchmarks: all -->"
MIXED_OP = "<!-- benchmarks: mixed_op -->"


def write_docs(files: Sequence[Path], page: Path, readme: Path, pictures: Path) -> list[Path]:
    """Puts results into the documentation and returns what was written.

    Every file becomes a section of `page` with a picture `benchmarks-<file>.png` in the folder
    `pictures`; the mixed operation of the first file that has it becomes the table in `readme`. All
    inputs are read before anything is written. Raises BenchmarkError on a file without results, on
    results of a tiny run, and on a page without the markers.
    """
    runs = {file: Results.load(file) for file in files}
    for file, results in runs.items():
        if results.settings.get("tiny"):
            raise BenchmarkError(f"{file} was measured with --tiny and says nothing about speed")
    images = {file: pictures / f"benchmarks-{file.stem}.png" for file in runs}
    chapters = [
        _chapter(results, os.path.relpath(images[file], page.parent), f"`{file.name}`")
        for file, results in runs.items()
    ]
    texts = {page: _replaced(page, ALL, "\n".join(chapters))}
    for results in runs.values():
        summary = [s for s in sections(results.cases, brief=True) if s.group == "mixed_op"]
        if summary:
            lines = [f"{origin(results)}:", "", summary[0].grids[0].markdown()]
            texts[readme] = _replaced(readme, MIXED_OP, "\n".join(lines))
            break
    for file, results in runs.items():
        plot_speedups(results, images[file])
    for path, text in texts.items():
        write_atomic(path, text.encode())
    return [*texts, *images.values()]


def _chapter(results: Results, picture: str, source: str) -> str:
    settings = results.settings
    lines = [f"## {origin(results)}", ""]
    lines += [
        f"From {source}; medians of up to {settings['repeats']} measurements.",
        "",
        f"![Speed-ups]({picture})",
        "",
    ]
    for section in sections(results.cases):
        lines += [f"### {section.title}", ""]
        for grid in section.grids:
            lines.append(grid.markdown())
        lines += [f"{note}\n" for note in section.notes]
    return "\n".join(lines)


def _replaced(path: Path, begin: str, new: str) -> str:
    """The text of `path` with what stands between the markers replaced."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BenchmarkError(f"cannot read {path}: {error.strerror}") from None
    head, found, rest = text.partition(begin)
    _, end, tail = rest.partition(END)
    if not found or not end:
        raise BenchmarkError(f"{path} lacks the markers {begin} and {END}")
    return f"{head}{begin}\n\n{new.strip()}\n\n{END}{tail}"
