"""The report of a run folder: pictures and one Markdown page that shows them with the tables."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

from metadnas_ext.errors import RunError
from metadnas_ext.report.cells import plot_genotype
from metadnas_ext.report.files import replacing
from metadnas_ext.report.names import method_name, percent
from metadnas_ext.report.plots import curve_panels, plot_clients, plot_curves
from metadnas_ext.report.result import ClientResult
from metadnas_ext.report.run import Genotype, Run, load_run
from metadnas_ext.report.tables import client_grid, compare_grid

RANKS = (
    (1.0, "best"),
    (0.5, "median"),
    (0.0, "worst"),
    (0.75, "upper quartile"),
    (0.25, "lower quartile"),
    (0.1, "worst decile"),
)
"""Which clients' architectures are drawn, by quantile of test accuracy."""

_METHODS_NOTE = """\
Test accuracy over clients: mean, population standard deviation, mean of the worst 10 % of clients,
mean of the clients that took no part in training. Search time and traffic (up and down) are sums
over the recorded rounds.
"""


def build_report(run_dir: str | Path, out_dir: str | Path | None = None) -> list[Path]:
    """Write `curves.png`, `clients.png`, cell graphs and `report.md`; return what was written.

    `out_dir` is `run_dir/report` by default. A run that has not ended gives its curves and a note.
    Every file appears whole or not at all. Raises RunError if `run_dir` is not a run folder.
    """
    run = load_run(run_dir)
    out = Path(run_dir) / "report" if out_dir is None else Path(out_dir)
    written: list[Path] = []
    page = [f"# Run {run.path.resolve().name}\n"]
    page += _status(run)
    if any(run.results.values()):
        grid = compare_grid(run.results, _seconds(run), _traffic(run))
        page += ["## Methods\n", grid.markdown(), _METHODS_NOTE]
    if curve_panels(run):
        written.append(plot_curves(run, out / "curves.png"))
        page += ["## Search\n", "![Curves over rounds](curves.png)\n"]
    if any(math.isfinite(r.test_accuracy) for results in run.results.values() for r in results):
        written.append(plot_clients(run, out / "clients.png"))
        page += ["## Clients\n", "![Test accuracy of every client](clients.png)\n"]
    for method in run.methods:
        page += _method_section(run, method, out, written)
    page += ["## Configuration\n", f"```json\n{json.dumps(run.config, indent=2)}\n```\n"]
    report = out / "report.md"
    with replacing(report) as temporary:
        temporary.write_text("\n".join(page), encoding="utf-8")
    return [*written, report]


def _status(run: Run) -> list[str]:
    """How far the run came."""
    rounds = ", ".join(
        f"{method_name(method)}: {len(entries)} (last: {entries[-1].round})"
        for method, entries in run.rounds.items()
    )
    lines = [f"Recorded rounds: {rounds or 'none'}.\n"]
    if not run.ended:
        lines.append(
            "> **This run has not ended:** `results.json` is missing, so there are no test "
            "accuracies.\n"
        )
    elif waiting := [method_name(m) for m in run.methods if not run.results.get(m)]:
        lines.append(f"> No test accuracies of: {', '.join(waiting)}.\n")
    return lines


def _seconds(run: Run) -> dict[str, float]:
    return {method: sum(r.seconds for r in rounds) for method, rounds in run.rounds.items()}


def _traffic(run: Run) -> dict[str, float]:
    return {
        method: sum(r.bytes_up + r.bytes_down for r in rounds)
        for method, rounds in run.rounds.items()
    }


def _method_section(run: Run, method: str, out: Path, written: list[Path]) -> list[str]:
    """Client table and cell graphs of one method; appends the pictures to `written`."""
    name = method_name(method)
    lines = [f"## {name}\n"]
    results = run.results.get(method, [])
    if results:
        table = client_grid(results).markdown()
        lines.append(f"<details><summary>All clients</summary>\n\n{table}\n</details>\n")
    for captions, file, genotype in _drawn(run, method, results):
        caption, *sharing = captions
        try:
            written.append(plot_genotype(genotype, out / file, title=f"{name}: {caption}"))
        except RunError as error:
            # A cell of another space is no reason to withhold the rest of the report.
            lines.append(f"{caption}: not drawn, {error}.\n")
        else:
            lines += [f"### {caption}\n", f"![{caption}]({file})\n"]
            if sharing:
                lines.append(f"The same architecture: {', '.join(sharing)}.\n")
    return lines if len(lines) > 1 else []


def _drawn(
    run: Run, method: str, results: Sequence[ClientResult]
) -> list[tuple[list[str], str, Genotype]]:
    """(captions, file name, genotype) of what to draw; equal genotypes share a picture."""
    stem = re.sub(r"[^A-Za-z0-9_-]", "_", method)
    saved = run.genotypes.get(method, {})
    owners: list[tuple[str, str, Genotype | None]] = [
        ("meta-architecture", f"cells_{stem}_meta.png", saved.get("meta"))
    ]
    for label, result in _ranked(results):
        caption = f"client {result.client} ({label}, {percent(result.test_accuracy, 1)} %)"
        genotype = result.genotype or saved.get(str(result.client))
        owners.append((caption, f"cells_{stem}_client_{result.client}.png", genotype))
    pictures: dict[str, tuple[list[str], str, Genotype]] = {}
    for caption, file, genotype in owners:
        if genotype is not None:
            key = json.dumps(genotype, sort_keys=True)
            pictures.setdefault(key, ([], file, genotype))[0].append(caption)
    return list(pictures.values())


def _ranked(results: Sequence[ClientResult]) -> list[tuple[str, ClientResult]]:
    """Up to six clients, best first, with what their rank means."""
    ordered = sorted(
        (r for r in results if math.isfinite(r.test_accuracy)),
        key=lambda r: (r.test_accuracy, r.client),
    )
    chosen: dict[int, str] = {}
    for quantile, label in RANKS:
        if ordered:
            chosen.setdefault(round(quantile * (len(ordered) - 1)), label)
    return [(chosen[index], ordered[index]) for index in sorted(chosen, reverse=True)]
