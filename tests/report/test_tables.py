"""Figures against numbers worked out by hand, and what the tables show."""

# ruff: noqa: RUF001 - dashes and multiplication signs are what people are shown

from __future__ import annotations

import math

import pytest
from rich.console import Console

from metadnas_ext.report.comparison import compare
from metadnas_ext.report.names import byte_count, duration, method_name, percent, quantity
from metadnas_ext.report.result import ClientResult
from metadnas_ext.report.run import Run
from metadnas_ext.report.statistics import summary
from metadnas_ext.report.study import Study
from metadnas_ext.report.tables import (
    accuracy_grid,
    client_grid,
    client_table,
    cost_grid,
)


@pytest.fixture
def results(make):
    def build(*accuracies, **changes):
        return [
            ClientResult.from_json(make.result(client, accuracy, **changes))
            for client, accuracy in enumerate(accuracies)
        ]

    return build


def compared(tmp_path, results):
    return compare(Study((Run(tmp_path, {}, {}, results),)))


def shown(table):
    console = Console(width=200, record=True, file=None, quiet=False, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_summary_of_four_clients(make):
    records = [
        make.result(0, 0.8),
        make.result(1, 0.6, seen=False, cost=2.5e6),
        make.result(2, 1.0, cost=0.5e6),
        make.result(3, 0.4, seen=False, cost=0.6e6, budget=None),
    ]
    figures = summary([ClientResult.from_json(record) for record in records])
    assert figures["mean"] == pytest.approx(0.7)
    # Deviations 0.1, -0.1, 0.3, -0.3: the mean square is 0.2 / 4.
    assert figures["std"] == pytest.approx(math.sqrt(0.05))
    assert figures["worst_decile"] == pytest.approx(0.4)
    assert figures["seen_mean"] == pytest.approx(0.9)
    assert figures["unseen_mean"] == pytest.approx(0.5)
    assert figures["mean_cost"] == pytest.approx(1.2e6)
    assert (figures["violations"], figures["clients"], figures["missing"]) == (1, 4, 0)


@pytest.mark.parametrize(
    ("clients", "lowest"),
    [(1, 1), (9, 1), (10, 1), (11, 2), (20, 2), (21, 3), (100, 10)],
)
def test_worst_decile_rounds_up(results, clients, lowest):
    accuracies = [i / 100 for i in range(clients, 0, -1)]
    # The lowest are 0.01, 0.02, ... whose mean is half of the first plus the last.
    expected = (1 + lowest) / 200
    assert summary(results(*accuracies))["worst_decile"] == pytest.approx(expected)


def test_clients_without_result_are_counted_not_averaged(results):
    figures = summary(results(0.5, None, 0.7))
    assert figures["mean"] == pytest.approx(0.6)
    assert figures["missing"] == 1
    assert math.isnan(figures["unseen_mean"])


def test_summary_of_nobody():
    figures = summary([])
    assert math.isnan(figures["mean"])
    assert math.isnan(figures["std"])
    assert figures["clients"] == 0


def test_costs_in_different_units_have_no_mean(make):
    records = [make.result(0), make.result(1, unit="ms", cost=3.0)]
    assert math.isnan(summary([ClientResult.from_json(r) for r in records])["mean_cost"])


def test_client_grid(make):
    records = [
        make.result(5, 0.5, seen=False, cost=3.0e6, kept="meta"),
        make.result(2, 0.75, budget=None),
        make.result(9, None),
    ]
    grid = client_grid([ClientResult.from_json(record) for record in records])
    assert grid.rows == (
        ("2", "seen", "120", "40", "75.0", "1.20 M", "–", "–", "personal"),
        ("5", "unseen", "120", "40", "50.0", "3.00 M", "2.00 M", "150.0 % (over)",
         "meta"),
        ("9", "seen", "120", "40", "–", "1.20 M", "2.00 M", "60.0 %", "personal"),
    )  # fmt: skip
    assert grid.headers[5] == "cost, MACs"
    assert grid.footer is not None
    assert grid.footer[:2] == ("3 clients", "1 without a result")
    assert (grid.footer[4], grid.footer[7]) == ("62.5 ± 12.5", "1 over")


def test_accuracy_and_cost_grids(results, tmp_path):
    by_method = {"meta_dnas": results(0.8, 0.9), "mine": results(0.7, 0.7), "darts": []}
    comparison = compared(tmp_path, by_method)
    assert accuracy_grid(comparison).rows == (
        ("Meta-DNAS", "85.00", "5.00", "80.00", "–", "–", "–"),
        ("mine", "70.00", "0.00", "70.00", "–", "–", "+15.00 [+10.00, +20.00]"),
    )
    unknown = ("–",) * 6
    assert cost_grid(comparison).rows == (
        ("Meta-DNAS", "1.20 M MACs", "0", *unknown),
        ("mine", "1.20 M MACs", "0", *unknown),
    )
    assert cost_grid(comparison).headers[-1] == "rounds to target"


def test_tables_print_and_take_names_literally(results, tmp_path):
    comparison = compared(tmp_path, {"[red]x[/red]": results(0.5)})
    text = shown(accuracy_grid(comparison).rich("Methods"))
    assert "[red]x[/red]" in text
    assert "Methods" in text
    text = shown(client_table(results(0.5, 0.7), "[b]Clients"))
    assert "[b]Clients" in text
    assert "60.0 ± 10.0" in text


def test_markdown_has_as_many_cells_in_every_row(results, tmp_path):
    grid = accuracy_grid(compared(tmp_path, {"a|b": results(0.5)}))
    lines = grid.markdown().splitlines()
    assert "a\\|b" in lines[2]
    assert {line.replace("\\|", "").count("|") for line in lines} == {8}


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.234e6, "macs", "1.23 M MACs"),
        (950, "macs", "950 MACs"),
        (12_345, "params", "12.3 k params"),
        (3.21, "ms", "3.21 ms"),
        (None, "macs", "–"),
        (math.nan, "macs", "–"),
    ],
)
def test_quantity(value, unit, text):
    assert quantity(value, unit) == text


def test_other_names():
    assert method_name("fedavg_ft") == "FedAvg + fine-tuning"
    assert method_name("brand_new") == "brand_new"
    assert byte_count(999) == "999 B"
    assert byte_count(2.5e9) == "2.50 GB"
    assert duration(12.34) == "12.3 s"
    assert duration(3 * 3600 + 125) == "3 h 02 min"
    assert percent(math.nan) == "–"
