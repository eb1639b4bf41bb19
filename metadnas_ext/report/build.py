"""The whole report of a study: Markdown with pictures, one HTML page, the table as data."""

from __future__ import annotations

from pathlib import Path

from metadnas_ext.files import writing
from metadnas_ext.report.clients import write_clients
from metadnas_ext.report.comparison import write_comparison
from metadnas_ext.report.content import gather
from metadnas_ext.report.html import write_html
from metadnas_ext.report.markdown import comparison_tables, write_markdown
from metadnas_ext.report.study import Study


def build_report(study: Study, out: Path, target: float | None = None) -> list[Path]:
    """Writes pictures, `report.md`, `comparison.*`, `clients.csv` and `report.html`; returns them.

    A run that has not ended gives its curves and a note. Every file appears whole or not at all.
    `target`: the validation accuracy of "rounds to"; see `comparison.compare`. RunError if `out`
    cannot be written.
    """
    content = gather(study, target)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        written = write_markdown(content, out)
        if content.comparison is not None:
            tables = comparison_tables(content.comparison)
            written += write_comparison(content.comparison, tables, out)
            written.append(write_clients(study, out))
        return [*written, write_html(content, out)]
