"""What a report shows, whatever it is written as."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from metadnas_ext.errors import RunError
from metadnas_ext.report.cells import genotype_figure
from metadnas_ext.report.comparison import BASELINE, OWN, Comparison, compare
from metadnas_ext.report.names import method_name, percent
from metadnas_ext.report.plots import (
    Panel,
    clients_figure,
    curve_panels,
    curves_figure,
    measured_methods,
)
from metadnas_ext.report.result import ClientResult
from metadnas_ext.report.run import Genotype, Run
from metadnas_ext.report.study import Study

RANKS = (
    (1.0, "best"),
    (0.5, "median"),
    (0.0, "worst"),
    (0.75, "upper quartile"),
    (0.25, "lower quartile"),
    (0.1, "worst decile"),
)
"""Which clients' architectures are drawn, by quantile of test accuracy."""

NOTES = (
    "Test accuracy over clients, once, at the end: mean (± standard deviation over seeds), "
    "population standard deviation, mean of the worst 10 % of clients, mean of the clients that "
    "took no part in training. With several seeds, each figure is the mean over seeds.",
    f"Harmed: clients with a lower accuracy than under {method_name(BASELINE)}. Gain: how "
    f"much more accurate {method_name(OWN)} (without it, the first method) is than the method of "
    "that row, in points: mean over clients, with its paired 95 % bootstrap interval (BCa, clients "
    "drawn within seeds).",
    "Time is that of search, rounds and personalisation; traffic is of all rounds, and of one. "
    "Rounds to a validation accuracy, without a given one the highest that every method reaches. "
    "Over: clients whose network costs more than their budget. Epochs to match: "
    "local epochs after which its clients, where their adaptation was followed, are as accurate as "
    "that method's at its end.",
)


@dataclass(frozen=True)
class Picture:
    """An architecture: who has it, and the drawing or why there is none."""

    captions: tuple[str, ...]
    name: str
    """Of a file, without its kind."""
    figure: Figure | None
    problem: str = ""


@dataclass(frozen=True)
class MethodContent:
    """One method's clients of every seed and the architectures drawn."""

    method: str
    clients: list[tuple[int, ClientResult]]
    pictures: list[Picture]


@dataclass(frozen=True)
class Content:
    """A whole report; parts without data are empty."""

    study: Study
    status: list[str]
    warnings: list[str]
    comparison: Comparison | None
    panels: list[Panel]
    measured: list[str]
    methods: list[MethodContent] = field(default_factory=list)

    @property
    def config(self) -> dict[str, Any]:
        """Of the first run."""
        return self.study.runs[0].config

    def curves(self, panels: Sequence[Panel]) -> Figure:
        return curves_figure(self.study, panels)

    def bars(self, methods: Sequence[str]) -> Figure:
        return clients_figure(self.study, methods)


def gather(study: Study, target: float | None = None) -> Content:
    """Everything there is to show. ConfigError if `target` is out of range; see `compare`."""
    comparison = compare(study, target)
    return Content(
        study=study,
        status=_status(study),
        warnings=_warnings(study),
        comparison=comparison if comparison.rows else None,
        panels=curve_panels(study),
        measured=measured_methods(study),
        methods=[_method(study, method) for method in study.methods],
    )


def _status(study: Study) -> list[str]:
    """How far each run came."""
    lines = []
    for run in study.runs:
        rounds = ", ".join(
            f"{method_name(method)}: {len(entries)} (last: {entries[-1].round})"
            for method, entries in run.rounds.items()
        )
        seed = f"Seed {run.seed}. " if len(study.runs) > 1 else ""
        lines.append(f"{seed}Recorded rounds: {rounds or 'none'}.")
    return lines


def _warnings(study: Study) -> list[str]:
    lines = []
    for run in study.runs:
        which = f"run {run.path.name}" if len(study.runs) > 1 else "run"
        if not run.ended:
            lines.append(
                f"This {which} has not ended: results.json is missing, so there are no test "
                "accuracies."
            )
        elif waiting := [method_name(m) for m in run.methods if not run.results.get(m)]:
            lines.append(f"No test accuracies of: {', '.join(waiting)}.")
    return lines


def _method(study: Study, method: str) -> MethodContent:
    pictures = []
    runs = [run for run in study.runs if method in run.methods]
    for captions, name, genotype in _drawn(runs[0], method, several=len(study.runs) > 1):
        title = f"{method_name(method)}: {captions[0]}"
        try:
            pictures.append(Picture(tuple(captions), name, genotype_figure(genotype, title)))
        except RunError as error:
            # A cell of another space is no reason to withhold the rest of the report.
            pictures.append(Picture(tuple(captions), name, None, str(error)))
    return MethodContent(method, study.clients(method), pictures)


def _drawn(run: Run, method: str, *, several: bool) -> list[tuple[list[str], str, Genotype]]:
    """(captions, file name, genotype) of what to draw of a run; equal genotypes share a picture."""
    saved, results = run.genotypes.get(method, {}), run.results.get(method, [])
    stem = "cells_" + re.sub(r"[^\w.-]+", "_", method)
    owners: list[tuple[str, str, Genotype | None]] = [
        ("meta-architecture", f"{stem}_meta", saved.get("meta"))
    ]
    for label, result in _ranked(results):
        caption = f"client {result.client} ({label}, {percent(result.test_accuracy, 1)} %)"
        genotype = result.genotype or saved.get(str(result.client))
        owners.append((caption, f"{stem}_client_{result.client}", genotype))
    pictures: dict[str, tuple[list[str], str, Genotype]] = {}
    for caption, name, genotype in owners:
        if genotype is not None:
            key = json.dumps(genotype, sort_keys=True)
            shown = f"{caption}, seed {run.seed}" if several else caption
            pictures.setdefault(key, ([], name, genotype))[0].append(shown)
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
