"""Every client of every method as data: what means, intervals and bars are made of."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from metadnas_ext.files import write_atomic
from metadnas_ext.report.study import Study

FIGURES = (
    "client",
    "seen",
    "train_size",
    "test_size",
    "test_accuracy",
    "val_accuracy",
    "supernet_accuracy",
    "discrete_accuracy",
    "cost",
    "expected_cost",
    "budget",
    "unit",
    "device",
    "kept",
    "steps",
    "diverged",
)
"""Of `ClientResult`; behind the method and the seed."""


def write_clients(study: Study, folder: Path) -> Path:
    """Writes `clients.csv`, whole or not at all: a line a client, empty without a figure."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["method", "seed", *FIGURES])
    for method in study.methods:
        for seed, result in study.clients(method):
            values = [getattr(result, figure) for figure in FIGURES]
            table.writerow([method, seed, *("" if _missing(value) else value for value in values)])
    path = folder / "clients.csv"
    write_atomic(path, text.getvalue().encode())
    return path


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
