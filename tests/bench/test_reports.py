"""Results as JSON, tables, pictures and pages of the documentation."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from metadnas_ext.bench import docs
from metadnas_ext.bench.case import OURS
from metadnas_ext.bench.plot import plot_speedups
from metadnas_ext.bench.results import CaseResult, Results, VariantResult
from metadnas_ext.bench.tables import origin, ratio_text, sections, time_text
from metadnas_ext.errors import BenchmarkError

from .conftest import SAMPLE


def edited(path: Path, edit: Callable[[Any], None]) -> Path:
    data = json.loads(path.read_bytes())
    edit(data)
    path.write_text(json.dumps(data))
    return path


def test_results_survive_the_file(tmp_path: Path) -> None:
    results = Results.load(SAMPLE)
    results.save(tmp_path / "again.json")
    assert Results.load(tmp_path / "again.json") == results
    assert (tmp_path / "again.json").read_bytes() == SAMPLE.read_bytes()


def test_the_file_holds_figures_that_follow_from_the_times() -> None:
    case = json.loads(SAMPLE.read_bytes())["cases"][0]
    nchw = case["variants"]["eager NCHW"]
    assert nchw["seconds"] == [0.3, 0.2, 0.4]
    assert (nchw["median"], nchw["min"]) == (0.3, 0.2)
    assert nchw["iqr"] == pytest.approx(0.1)
    expected = {"eager NCHW": 15, "eager channels-last": 5, "torch.compile": 3}
    assert case["ratios"] == pytest.approx(expected)


def test_a_gpu_is_named_first() -> None:
    results = Results.load(SAMPLE)
    before = origin(results)
    results.machine |= {"gpu": "Some GPU", "gpu_memory_bytes": 141_000_000_000}
    assert origin(results) == f"Some GPU, 141 GB; {before}"


def test_a_step_of_search_says_what_a_search_takes() -> None:
    """25,000 images in batches of 64 are 391 steps, 50 times."""
    variants = {"eager NCHW": VariantResult([1.0], 1.0), OURS: VariantResult([0.1], 0.1)}
    case = CaseResult("search_step/a", "C 16", {"batch": 64}, variants)
    (section,) = sections([case])
    expected = "C 16: 19,550 steps, as many as DARTS searches CIFAR-10 for, take "
    assert section.notes == (f"{expected}eager NCHW 5 h 25 min, metadnas_ext 32 min 35 s.",)
    # 640 images are ten steps.
    epoch = replace(case, name="search_epoch/a", params={"batch": 64, "images": 640})
    (section,) = sections([epoch])
    assert section.notes == (f"{expected}eager NCHW 32 min 35 s, metadnas_ext 3 min 16 s.",)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(schema=2), "has schema 2, this version reads 1"),
        (lambda d: d.pop("machine"), "does not hold benchmark results .*machine"),
        (lambda d: d["cases"][0].pop("work"), "does not hold .*work"),
        (lambda d: d["cases"][0]["variants"].pop(OURS), "lacks times"),
        (lambda d: d["cases"][0]["variants"][OURS].update(seconds=[]), "lacks times"),
        (lambda d: d["cases"][0]["variants"][OURS].update(seconds=[-1.0]), "lacks times"),
        (lambda d: d.update(cases=3), "does not hold"),
    ],
)
def test_files_that_are_no_results(sample: Path, edit: Callable[[Any], None], message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        Results.load(edited(sample, edit))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"cannot read .*none\.json: No such file"):
        Results.load(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("text")
    with pytest.raises(BenchmarkError, match="does not hold"):
        Results.load(tmp_path / "text.json")


def test_tables() -> None:
    shown = {section.group: section for section in sections(Results.load(SAMPLE).cases)}
    assert list(shown) == ["mixed_op", "cohort", "aggregation"]
    compiled, plain = shown["mixed_op"].grids
    assert dict(zip(compiled.headers, compiled.rows[0], strict=True)) == {
        "case": "C 16, 32×32, stride 1",
        "eager NCHW": "300 ms",
        "eager channels-last": "100 ms",
        "torch.compile": "60.0 ms",
        OURS: "20.0 ms",
        "speed-up": "15.0×, 5.0×, 3.0×",
        "GFLOP/s (sgemm)": "100 (50 %)",
        "saved (MB)": "100 → 20.0",
        "peak (MB)": "200 → 40.0",
    }
    assert plain.headers == (*compiled.headers[:3], OURS, *compiled.headers[5:8])
    assert plain.rows[0][4:6] == ("250×, 1.20×", "100 (50 %)")
    (aggregation,) = shown["aggregation"].grids
    assert aggregation.rows[0][1:] == ("80.0 µs", "40.0 µs", "2.0×", "0.20 (1 %)")
    assert shown["aggregation"].notes == (
        "mean of α, 10 clients: 7 clients only: 10 do not fit into memory.",
    )


def test_texts() -> None:
    assert [time_text(t) for t in (12.34, 0.9996, 0.01, 1.5e-6)] == [
        "12.3 s",
        "1000 ms",
        "10.0 ms",
        "1.50 µs",
    ]
    assert [ratio_text(r) for r in (123.4, 12.34, 1.234, 0.5)] == [
        "123×",
        "12.3×",
        "1.23×",
        "0.50×",
    ]
    line = origin(Results.load(SAMPLE))
    assert line == (
        "Some processor, 2 of 2 cores, avx512, 25.0 GB; torch 2.13.0, "
        "metadnas_ext 0.1.0 (0123456789ab); 2026-01-02"
    )


def test_spread() -> None:
    assert VariantResult([1.0], 1.0).spread == 0
    assert VariantResult([1.0, 2.0, 3.0, 4.0, 5.0], 1.0).spread == 2


def test_picture(tmp_path: Path) -> None:
    results = Results.load(SAMPLE)
    with Image.open(plot_speedups(results, tmp_path / "speed.png")) as image:
        assert min(image.size) > 200
    svg = plot_speedups(results, tmp_path / "speed.svg").read_text()
    assert svg.startswith("<?xml")
    results.cases = results.cases[-1:]
    with pytest.raises(BenchmarkError, match="nothing to plot"):
        plot_speedups(results, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


PAGE = f"# Title\n\n{docs.ALL}\nold\n{docs.END}\n\nafter\n"
README = f"before\n{docs.MIXED_OP}\nold\n{docs.END}\nafter\n"


def pages(folder: Path) -> tuple[Path, Path, Path]:
    (folder / "docs").mkdir()
    (folder / "docs" / "page.md").write_text(PAGE)
    (folder / "README.md").write_text(README)
    return folder / "docs" / "page.md", folder / "README.md", folder / "docs" / "images"


def test_docs(sample: Path, tmp_path: Path) -> None:
    page, readme, pictures = pages(tmp_path)
    for _ in range(2):  # the second time from its own text
        written = docs.write_docs([sample], page, readme, pictures)
        assert written == [page, readme, pictures / "benchmarks-box.png"]
        text = page.read_text()
        assert text.startswith(f"# Title\n\n{docs.ALL}\n\n## Some processor, 2 of 2 cores")
        assert text.endswith(f"{docs.END}\n\nafter\n")
        assert "(images/benchmarks-box.png)" in text
        assert "| C 16, 32×32, stride 1 | 300 ms | 100 ms | 60.0 ms | 20.0 ms |" in text
        assert "do not fit into memory" in text
        assert "old" not in text
        summary = readme.read_text()
        assert summary.startswith(f"before\n{docs.MIXED_OP}\n\nSome processor")
        assert summary.endswith(f"{docs.END}\nafter\n")
        assert "| 15.0×, 5.0×, 3.0× |\n" in summary
        assert "GFLOP" not in summary
    with Image.open(pictures / "benchmarks-box.png") as image:
        image.verify()


@pytest.mark.parametrize("broken", ["markers", "results", "tiny"])
def test_docs_are_written_all_or_not_at_all(sample: Path, tmp_path: Path, broken: str) -> None:
    page, readme, pictures = pages(tmp_path)
    if broken == "markers":
        readme.write_text("before\nafter\n")
    elif broken == "results":
        sample.write_text("{}")
    else:
        edited(sample, lambda d: d["settings"].update(tiny=True))
    before = page.read_text(), readme.read_text()
    with pytest.raises(BenchmarkError):
        docs.write_docs([sample], page, readme, pictures)
    assert (page.read_text(), readme.read_text()) == before
    assert not pictures.exists()


def test_the_documentation_has_the_markers(sample: Path, tmp_path: Path) -> None:
    """The pages of this checkout, copied."""
    root = Path(__file__).parents[2]
    page, readme = tmp_path / "benchmarks.md", tmp_path / "README.md"
    page.write_text((root / "docs" / "benchmarks.md").read_text())
    readme.write_text((root / "README.md").read_text())
    docs.write_docs([sample], page, readme, tmp_path)
    assert "Some processor" in page.read_text()
    assert "Some processor" in readme.read_text()
