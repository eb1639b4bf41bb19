"""Modules of the user's that a command imports for what they register."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from metadnas_ext.errors import ConfigError, MetadnasError


def import_all(names: Iterable[str]) -> None:
    """Runs each module, by its dotted name or its file. ConfigError naming one that fails."""
    for name in names:
        try:
            _import(name)
        except MetadnasError:
            raise
        except Exception as error:
            raise ConfigError(f"--import {name}: {type(error).__name__}: {error}") from error


def _import(name: str) -> None:
    if not name.endswith(".py"):
        importlib.import_module(name)
        return
    own = f"metadnas_import_{Path(name).stem}"  # no name of a module that exists
    spec = importlib.util.spec_from_file_location(own, name)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[own] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[own])
