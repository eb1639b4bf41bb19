"""A report as one HTML file: styles, script and pictures inside, nothing loaded from anywhere."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from metadnas_ext.report.comparison import BASELINE
from metadnas_ext.report.content import NOTES, Content
from metadnas_ext.report.files import replacing
from metadnas_ext.report.names import NOT_MEASURED, method_name, percent, quantity
from metadnas_ext.report.result import ClientResult
from metadnas_ext.report.svg import inline_svg
from metadnas_ext.report.tables import Grid, accuracy_grid, cost_grid

_ASSETS = resources.files("metadnas_ext.report") / "assets"


@dataclass(frozen=True)
class Column:
    """A column of the client table; `key` names it in the page's address."""

    key: str
    title: str
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """What is shown, and what is sorted by: a number, a text, or nothing."""

    text: str
    value: float | str = ""


def write_html(content: Content, out: Path) -> Path:
    """Writes `report.html`, whole or not at all."""
    path = out / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(render(content), encoding="utf-8")
    return path


def render(content: Content) -> str:
    """The page. All text that comes from a run is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    columns, rows = client_rows(content)
    return environment.from_string(_asset("report.html")).render(
        title=content.study.name,
        status=content.status,
        warnings=content.warnings,
        grids=_grids(content),
        notes=NOTES,
        curves=list(_curves(content)),
        bars=list(_bars(content)),
        columns=columns,
        rows=rows,
        methods=list(_methods(content)),
        config=json.dumps(content.config, indent=2),
        style=Markup(_asset("report.css")),
        script=Markup(_asset("report.js")),
    )


def client_rows(content: Content) -> tuple[list[Column], list[list[Cell]]]:
    """Every client of every method and seed."""
    study = content.study
    several = len(study.seeds) > 1
    compared = bool(study.of(BASELINE))
    baseline = study.accuracy(BASELINE)
    columns = [
        Column("method", "method", numeric=False),
        *([Column("seed", "seed")] if several else []),
        Column("client", "client"),
        Column("group", "group", numeric=False),
        Column("accuracy", "test %"),
        *([Column("gain", f"vs {method_name(BASELINE)}")] if compared else []),
        Column("val", "val %"),
        Column("train", "train"),
        Column("test", "test"),
        Column("cost", "cost"),
        Column("budget", "budget"),
        Column("used", "used %"),
        Column("kept", "kept", numeric=False),
    ]
    rows = []
    for method in study.methods:
        for seed, result in study.clients(method):
            rival = baseline.get(seed, {}).get(result.client, math.nan)
            cells = _client_cells(method_name(method), seed, result, rival)
            rows.append([cells[column.key] for column in columns])
    return columns, rows


def _client_cells(method: str, seed: int, r: ClientResult, rival: float) -> dict[str, Cell]:
    used = r.cost / r.budget if r.budget else math.nan
    gain = r.test_accuracy - rival
    over = " (over)" if r.over_budget else ""
    return {
        "method": Cell(method, method),
        "seed": Cell(str(seed), seed),
        "client": Cell(str(r.client), r.client),
        "group": _text("seen" if r.seen else "unseen"),
        "accuracy": _number(r.test_accuracy, percent(r.test_accuracy, 1)),
        "gain": _number(gain, ("+" if gain >= 0 else "") + percent(gain, 1)),
        "val": _number(r.val_accuracy, percent(r.val_accuracy, 1)),
        "train": Cell(str(r.train_size), r.train_size),
        "test": Cell(str(r.test_size), r.test_size),
        "cost": _number(r.cost, quantity(r.cost, r.unit)),
        "budget": _number(r.budget, quantity(r.budget, r.unit)),
        "used": _number(used, percent(used, 1) + over),
        "kept": _text(r.ended_with),
    }


def _text(value: str) -> Cell:
    return Cell(value, value)


def _number(value: float | None, text: str) -> Cell:
    if value is None or not math.isfinite(value):
        return Cell(NOT_MEASURED)
    return Cell(text, value)


def _grids(content: Content) -> list[tuple[str, Grid]]:
    if content.comparison is None:
        return []
    return [
        ("Accuracy", accuracy_grid(content.comparison)),
        ("Cost", cost_grid(content.comparison)),
    ]


def _curves(content: Content) -> Iterator[Markup]:
    # A panel each, so that they flow into one column on a phone.
    for index, panel in enumerate(content.panels):
        label = f"{panel.title} over rounds, a line a method"
        yield inline_svg(content.curves([panel]), f"curve{index}", label)


def _bars(content: Content) -> Iterator[Markup]:
    for index, method in enumerate(content.measured):
        label = f"Test accuracy of every client under {method_name(method)}, sorted"
        yield inline_svg(content.bars([method]), f"bars{index}", label)


def _methods(content: Content) -> Iterator[dict[str, Any]]:
    for number, part in enumerate(content.methods):
        pictures = []
        for index, picture in enumerate(part.pictures):
            caption, *sharing = picture.captions
            shown = Markup()
            if picture.figure is not None:
                label = f"Cells of {method_name(part.method)}, {caption}"
                shown = inline_svg(picture.figure, f"cells{number}-{index}", label)
            pictures.append(
                {"caption": caption, "sharing": sharing, "svg": shown, "problem": picture.problem}
            )
        if pictures:
            yield {"name": method_name(part.method), "pictures": pictures}


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
