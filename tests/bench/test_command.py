"""`metadnas bench` and `metadnas bench-report` as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from metadnas_ext.bench import command
from metadnas_ext.bench.registry import CASES
from metadnas_ext.bench.results import Results
from metadnas_ext.cli import app

from .conftest import SAMPLE

FAST = ["--tiny", "--repeats", "2", "--seconds", "0.1"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def metadnas(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def one_line_error(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_bench_goes_on_with_what_was_measured_before(tmp_path: Path) -> None:
    first, second = "aggregation/mean-alpha-100", "mixed_op/c64-8x8-s1"
    third = "aggregation/mean-alpha-10"
    options = [*FAST, "--out", "figures.json"]
    assert metadnas("bench", first, *options).exit_code == 0
    earlier = Results.load(tmp_path / "figures.json")
    result = metadnas("bench", first, second, third, *options, "--resume")
    assert result.exit_code == 0, result.output
    results = Results.load(tmp_path / "figures.json")
    assert [case.name for case in results.cases] == [first, third, second]
    assert results.cases[0] == earlier.cases[0]  # not measured again


def test_resume_needs_a_file_of_the_same_settings(tmp_path: Path) -> None:
    name = "aggregation/mean-alpha-10"
    assert "--out" in one_line_error(metadnas("bench", name, *FAST, "--resume"))
    assert metadnas("bench", name, *FAST, "--out", "figures.json").exit_code == 0
    other = [*FAST, "--compile", "--out", "figures.json", "--resume"]
    line = one_line_error(metadnas("bench", name, *other))
    assert "settings" in line
    assert "'compile': False" in line


def test_bench_prints_tables_and_writes_results(tmp_path: Path) -> None:
    names = ["mixed_op/c64-8x8-s1", "aggregation/mean-alpha-10"]
    result = metadnas("bench", *names, *FAST, "--threads", "1", "--out", "figures.json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert "One mixed operation, forward and backward" in result.stdout
    assert "Aggregation over clients" in result.stdout
    assert result.stdout.rstrip().endswith("figures.json")
    results = Results.load(tmp_path / "figures.json")
    assert [case.name for case in results.cases] == names
    assert results.machine["threads"] == 1
    assert results.versions["torch"] == torch.__version__
    assert results.settings["tiny"] is True
    mixed, mean = results.cases
    assert mixed.params == CASES[names[0]].sizes(tiny=True)
    assert tuple(mixed.variants) == CASES[names[0]].variants
    assert all(len(v.seconds) <= 2 for v in mixed.variants.values())
    assert mixed.sgemm is not None
    assert mean.copy is not None


def test_list() -> None:
    result = metadnas("bench", "--list")
    assert result.exit_code == 0, result.output
    for name in CASES:
        assert name in result.stdout
    assert len(metadnas("bench", "--list", "cohort").stdout) < len(result.stdout) / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mixed_opp"], "no benchmark case matches 'mixed_opp'; did you mean mixed_op"),
        (["cohort", "--out", "nowhere/x.json"], "expected a file in a folder that exists"),
        (["cohort", "--out", "."], "expected a file in a folder that exists"),
        (["--device", "gpu"], "--device is 'gpu', expected cpu, cuda, cuda:<n> or auto"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    assert message in one_line_error(metadnas("bench", *arguments))


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Results, "save", save)
    result = metadnas("bench", "aggregation/mean-alpha-10", *FAST, "--out", "x.json")
    assert one_line_error(result) == "error: --out x.json: No space left on device"


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = command.run_case

    def run_case(case: object, *arguments: object) -> object:
        if case is CASES["aggregation/mean-alpha-100"]:
            raise KeyboardInterrupt
        return measured(case, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(command, "run_case", run_case)
    names = ["aggregation/mean-alpha-10", "aggregation/mean-alpha-100"]
    result = metadnas("bench", *names, *FAST, "--out", "figures.json")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    (case,) = Results.load(tmp_path / "figures.json").cases
    assert case.name == names[0]


def test_bench_report(tmp_path: Path) -> None:
    (tmp_path / "bench" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    page, readme = tmp_path / "docs" / "benchmarks.md", tmp_path / "README.md"
    page.write_text("<!-- benchmarks: all -->\n<!-- benchmarks: end -->\n")
    readme.write_text("<!-- benchmarks: mixed_op -->\n<!-- benchmarks: end -->\n")
    assert "bench/results holds no JSON" in one_line_error(metadnas("bench-report"))
    (tmp_path / "bench" / "results" / "box.json").write_bytes(SAMPLE.read_bytes())
    result = metadnas("bench-report")
    assert result.exit_code == 0, result.output
    written = [Path(line) for line in result.stdout.splitlines()]
    assert written == [
        Path("docs/benchmarks.md"),
        Path("README.md"),
        Path("docs/images/benchmarks-box.png"),
    ]
    assert all(path.stat().st_size > 100 for path in written)


def test_pytest_benchmark_runs_the_registry(tmp_path: Path) -> None:
    """It finds every variant and leaves out those of the slow cases."""
    root = Path(__file__).parents[2]
    command_line = [sys.executable, "-m", "pytest", root / "bench", "--collect-only"]
    command_line += ["-p", "no:cacheprovider", "-c", root / "pyproject.toml"]
    done = subprocess.run(command_line, capture_output=True, text=True, check=True, cwd=tmp_path)
    every = sum(len(case.variants) for case in CASES.values() if not case.large)
    quick = sum(len(case.variants) for case in CASES.values() if case.quick)
    assert f"{quick}/{every} tests collected" in done.stdout
