"""Figures as SVG elements that can stand beside each other in one page."""

from __future__ import annotations

import io
import re

from markupsafe import Markup, escape
from matplotlib.figure import Figure

_ID = re.compile(r'\bid="([^"]+)"')
_REFERENCE = re.compile(r'(xlink:href="#|url\(#)([^")]+)')


def inline_svg(figure: Figure, prefix: str, label: str) -> Markup:
    """The figure as an <svg> element without background, named `label` for screen readers.

    matplotlib counts ids anew in each figure, and makes some at random: here they are numbered in
    order behind `prefix`, so that figures of one page do not take each other's parts, and a page is
    the same each time.
    """
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]  # without the XML declaration and the document type
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    names: dict[str, str] = {}
    for name in _ID.findall(svg):
        names.setdefault(name, f"{prefix}-{len(names)}")
    svg = _ID.sub(lambda match: f'id="{names[match[1]]}"', svg)
    svg = _REFERENCE.sub(lambda match: match[1] + names.get(match[2], match[2]), svg)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1))
