"""A report as one Markdown page and PNG pictures beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from metadnas_ext.report.comparison import Comparison
from metadnas_ext.report.content import NOTES, Content, MethodContent
from metadnas_ext.report.files import replacing, save_figure
from metadnas_ext.report.names import method_name
from metadnas_ext.report.tables import accuracy_grid, client_grid, cost_grid


def write_markdown(content: Content, out: Path) -> list[Path]:
    """Writes `curves.png`, `clients.png`, cell graphs and `report.md`; returns what was written."""
    written: list[Path] = []
    page = [f"# Run {content.study.name}\n", *(f"{line}\n" for line in content.status)]
    page += [f"> **{line}**\n" for line in content.warnings]
    if content.comparison is not None:
        page += ["## Methods\n", comparison_tables(content.comparison)]
    if content.panels:
        written.append(save_figure(content.curves(content.panels), out / "curves.png"))
        page += ["## Search\n", "![Curves over rounds](curves.png)\n"]
    if content.measured:
        written.append(save_figure(content.bars(content.measured), out / "clients.png"))
        page += ["## Clients\n", "![Test accuracy of every client](clients.png)\n"]
    for part in content.methods:
        page += _method_section(part, out, written)
    page += ["## Configuration\n", f"```json\n{json.dumps(content.config, indent=2)}\n```\n"]
    report = out / "report.md"
    with replacing(report) as temporary:
        temporary.write_text("\n".join(page), encoding="utf-8")
    return [*written, report]


def comparison_tables(comparison: Comparison) -> str:
    """Both tables of methods with what their figures mean."""
    grids = (accuracy_grid(comparison), cost_grid(comparison))
    return "\n".join([*(grid.markdown() for grid in grids), *(f"{note}\n" for note in NOTES)])


def _method_section(part: MethodContent, out: Path, written: list[Path]) -> list[str]:
    """Client tables and cell graphs of one method; appends the pictures to `written`."""
    lines = [f"## {method_name(part.method)}\n"]
    seeds = dict.fromkeys(seed for seed, _ in part.clients)
    for seed in seeds:
        table = client_grid([r for s, r in part.clients if s == seed]).markdown()
        which = f" of seed {seed}" if len(seeds) > 1 else ""
        lines.append(f"<details><summary>All clients{which}</summary>\n\n{table}\n</details>\n")
    for picture in part.pictures:
        caption, *sharing = picture.captions
        if picture.figure is None:
            lines.append(f"{caption}: not drawn, {picture.problem}.\n")
            continue
        file = re.sub(r"[^A-Za-z0-9_-]", "_", picture.name) + ".png"
        written.append(save_figure(picture.figure, out / file))
        lines += [f"### {caption}\n", f"![{caption}]({file})\n"]
        if sharing:
            lines.append(f"The same architecture: {', '.join(sharing)}.\n")
    return lines if len(lines) > 1 else []
