"""The page: well formed, whole, self-contained; in a browser, its table sorts and filters."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metadnas_ext.report.content import gather
from metadnas_ext.report.html import render, write_html
from metadnas_ext.report.study import load_study

from . import _chromium

VOID = {"meta", "input", "br"}
EVIL = "<script>window.pwned = 1</script>\"'&</script>"


class Reader(HTMLParser):
    """Checks nesting; collects ids, attributes, the text and the rows of the client table."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.rows: list[list[str]] = []
        self.scripts = 0
        self._in_clients = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attributes]
        self.scripts += tag == "script"
        if tag == "table":
            self._in_clients = ("id", "clients") in attributes
        if tag == "tr" and self._in_clients and "tbody" in self.open:
            self.rows.append([])
        if tag == "td" and self._in_clients:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td" and self._in_clients:
            self.rows[-1][-1] += data

    def values(self, *names: str) -> list[str]:
        return [value or "" for _, name, value in self.attributes if name in names]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("html")


@pytest.fixture(scope="module")
def runs(folder: Path, maker: SimpleNamespace) -> list[Path]:
    """Two seeds, three methods, twelve clients; names that want to break out of the page."""
    paths = []
    for seed in (0, 1):
        methods: dict[str, Any] = {}
        for place, method in enumerate(("meta_dnas", "fedavg_ft", EVIL)):
            methods[method] = [
                maker.result(
                    client,
                    None if client == 5 else round((7 * client + 3 * seed) % 12 / 12, 3),
                    seen=client % 4 != 3,
                    cost=1e6 * (1 + (5 * client + place) % 12),
                    budget=None if client == 2 else 8e6,
                )
                for client in range(12)
            ]
        rounds = [maker.round(method, i) for method in methods for i in range(1, 4)]
        path = maker.run(folder / f"run {seed}", rounds, methods)
        (path / "config.json").write_text(f'{{"run": {{"seed": {seed}}}, "name": "</pre><b>"}}')
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def page(runs: list[Path], folder: Path) -> Path:
    return write_html(gather(load_study(*runs)), folder / "out")


def test_well_formed_with_every_client(page: Path) -> None:
    reader = Reader(page.read_text(encoding="utf-8"))
    assert reader.open == []
    ids = reader.values("id")
    assert len(ids) == len(set(ids))
    assert set(reader.values("aria-labelledby")) <= set(ids)
    assert len(reader.rows) == 2 * 3 * 12
    clients = [tuple(row[:3]) for row in reader.rows]
    names = ("Meta-DNAS", "FedAvg + fine-tuning", EVIL)
    assert clients == [
        (name, str(seed), str(client)) for name in names for seed in (0, 1) for client in range(12)
    ]
    # Seed 0, client 1: 7 / 12 of the images; 2 of 12 million MACs are within 8.
    assert reader.rows[1][4:6] == ["58.3", "+0.0"]
    assert reader.rows[1][9:] == ["6.00 M MACs", "8.00 M MACs", "75.0", "personal"]
    assert reader.rows[2][9:12] == ["11.0 M MACs", "–", "–"]  # noqa: RUF001
    assert reader.rows[5][4:6] == ["–", "–"]  # noqa: RUF001


def test_nothing_is_loaded_and_nothing_breaks_out(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    reader = Reader(text)
    assert reader.scripts == 1
    assert "<script>window.pwned" not in text
    assert "</pre><b>" not in text
    for value in reader.values("src", "href", "xlink:href", "action", "poster", "data"):
        assert value.startswith("#")
    assert all(not name.startswith("on") for _, name, _ in reader.attributes)
    for address in re.findall(r"url\(([^)]*)\)", text):
        assert address.startswith("#")
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_references_of_pictures_stay_in_their_picture(page: Path) -> None:
    """Each id that something refers to is there, under the prefix of its own picture."""
    for svg in re.findall(r"<svg.*?</svg>", page.read_text(encoding="utf-8"), re.DOTALL):
        ids = set(re.findall(r'\bid="([^"]+)"', svg))
        used = set(re.findall(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)', svg))
        names = {one or other for one, other in used}
        assert names
        assert names <= ids
        assert len({name.rpartition("-")[0] for name in ids}) == 1
        assert 'role="img" aria-label="' in svg


def test_same_runs_same_page(runs: list[Path], page: Path) -> None:
    assert render(gather(load_study(*runs))) == page.read_text(encoding="utf-8")


def test_run_without_results_or_rounds(tmp_path: Path, maker: SimpleNamespace) -> None:
    empty = render(gather(load_study(maker.run(tmp_path / "empty", []))))
    assert Reader(empty).open == []
    assert "has not ended" in empty
    assert "<svg" not in empty
    strange = [maker.result(genotype={"edges": ["<b>"]})]
    drawn = render(gather(load_study(maker.run(tmp_path / "strange", [], {"darts": strange}))))
    assert Reader(drawn).open == []
    assert "Not drawn: the genotype has no &#39;normal&#39; cell." in drawn


# In a browser.


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[_chromium.Page]:
    path = _chromium.installed()
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(_chromium.NAMES)} is installed")
    chromium = _chromium.Page(path, folder / "profile")
    yield chromium
    chromium.close()


@pytest.fixture
def shown(browser: _chromium.Page, page: Path) -> Iterator[_chromium.Page]:
    """The page, freshly loaded; whatever a test does to it, it neither fails nor loads anything."""
    browser.open(page.as_uri())
    yield browser
    assert browser.problems == []
    assert browser.requests == [page.as_uri()]
    assert browser.evaluate("typeof window.pwned") == "undefined"


def column(shown: _chromium.Page, key: str) -> list[str]:
    """The cells below a heading, as shown from top to bottom."""
    cells: list[str] = shown.evaluate(
        f"(() => {{ const h = document.querySelector('#clients th[data-key={key}]').cellIndex;"
        "return Array.from(document.querySelectorAll('#clients tbody tr'),"
        " row => row.cells[h].textContent); })()"
    )
    return cells


def sorted_by(shown: _chromium.Page) -> list[list[str]]:
    """(key, direction) of the headings that say they are sorted by."""
    found: list[list[str]] = shown.evaluate(
        "Array.from(document.querySelectorAll('#clients th'))"
        ".map(h => [h.dataset.key, h.getAttribute('aria-sort')]).filter(p => p[1] !== 'none')"
    )
    return found


def numbers(texts: list[str]) -> list[float]:
    return [float(re.sub(r"[^-+.0-9]", "", text) or "nan") for text in texts]


def test_sorting_by_mouse(shown: _chromium.Page) -> None:
    before = column(shown, "accuracy")
    assert sorted_by(shown) == []
    shown.click("#clients th[data-key=accuracy] button")
    falling = numbers(column(shown, "accuracy"))
    assert sorted_by(shown) == [["accuracy", "descending"]]
    present = sorted((v for v in numbers(before) if not math.isnan(v)), reverse=True)
    assert falling[: len(present)] == present
    assert all(math.isnan(v) for v in falling[len(present) :])  # not measured: last
    shown.click("#clients th[data-key=accuracy] button")
    rising = numbers(column(shown, "accuracy"))
    assert sorted_by(shown) == [["accuracy", "ascending"]]
    assert rising[: len(present)] == present[::-1]
    assert all(math.isnan(v) for v in rising[len(present) :])
    assert shown.evaluate("location.hash") == "#sort=accuracy&order=ascending"


def test_numbers_sort_as_numbers_and_names_as_names(shown: _chromium.Page) -> None:
    shown.click("#clients th[data-key=cost] button")
    costs = numbers(column(shown, "cost"))  # 12.0 M comes before 9.00 M
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == 12
    shown.click("#clients th[data-key=method] button")
    names = column(shown, "method")
    assert names == sorted(names, key=lambda name: (name != EVIL, name))
    assert sorted_by(shown) == [["method", "ascending"]]


def test_sorting_and_filtering_by_keyboard(shown: _chromium.Page) -> None:
    shown.evaluate("document.getElementById('filter').focus()")
    shown.call("Input.insertText", text="unseen meta")
    assert set(column(shown, "method")) == {"Meta-DNAS"}
    assert set(column(shown, "group")) == {"unseen"}
    assert shown.evaluate("document.getElementById('count').textContent") == "6 of 72 rows"
    for _ in range(2):  # past the scrolling region to the first heading
        shown.press("Tab")
    focused = "document.activeElement.closest('th')?.dataset.key"
    assert shown.evaluate(focused) == "method"
    shown.press("Tab")
    shown.press("Tab")
    assert shown.evaluate(focused) == "client"
    shown.press("Enter", "\r")
    assert column(shown, "client") == ["11", "11", "7", "7", "3", "3"]
    shown.press(" ", " ")
    assert column(shown, "client") == ["3", "3", "7", "7", "11", "11"]


def test_the_address_keeps_the_view(browser: _chromium.Page, page: Path) -> None:
    browser.open(f"{page.as_uri()}#sort=client&order=descending&filter=over")
    assert sorted_by(browser) == [["client", "descending"]]
    assert all("(over)" in cell for cell in column(browser, "used"))
    clients = numbers(column(browser, "client"))
    assert clients == sorted(clients, reverse=True)
    assert browser.evaluate("document.getElementById('filter').value") == "over"
    browser.open(f"{page.as_uri()}#sort=%3Cscript%3E&order=up")
    assert sorted_by(browser) == []
    assert len(column(browser, "client")) == 72
    assert browser.problems == []


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_no_part_is_wider_than_the_screen(shown: _chromium.Page, width: int) -> None:
    metrics = {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": width < 500}
    shown.call("Emulation.setDeviceMetricsOverride", **metrics)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    shown.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(shown: _chromium.Page, scheme: str) -> None:
    """Contrast as the WCAG define it: at least 7 for text, 4.5 for quiet text."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    shown.call("Emulation.setEmulatedMedia", features=[feature])
    style = "getComputedStyle(document.querySelector('{}')).{}"
    page = luminance(shown.evaluate(style.format("body", "backgroundColor")))
    assert (page > 0.5) == (scheme == "light")
    for selector, least in (("body", 7), (".quiet", 4.5), ("#clients td", 7)):
        ink = luminance(shown.evaluate(style.format(selector, "color")))
        assert (max(ink, page) + 0.05) / (min(ink, page) + 0.05) >= least
    shown.call("Emulation.setEmulatedMedia", features=[])


def luminance(colour: str) -> float:
    """Relative luminance of 'rgb(r, g, b)'."""
    channels = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
