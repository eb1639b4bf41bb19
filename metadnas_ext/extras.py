"""Optional dependencies: found, or named with the extra that brings them."""

from __future__ import annotations

import importlib.util

from metadnas_ext.errors import ExtraError


def require(extra: str, *modules: str) -> None:
    """ExtraError naming `extra` unless all `modules` can be imported; none of them is."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ExtraError(
            f"{', '.join(missing)} is not installed; it comes with: "
            f'pip install "metadnas_ext[{extra}]"'
        )
